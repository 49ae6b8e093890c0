"""Models of real shapes with random weights: what they say is nonsense, and takes as long as sense does.

Each has a tokenizer to which every word is a token, so that a text's tokens can be counted and compared by its words.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SEED = 0
WEIGHTS_BY_ROOT_OF_WIDTH = 1.4
"""The spread of the weights, times the root of the model's width: answers are neither all one token nor all noise."""
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama-3.1-8b": {
        "dtype": "bfloat16",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    "tiny": {
        "dtype": "float32",
        "vocab_size": 512,
        "hidden_size": 192,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
    },
}


def write(shape: str, directory: Path, words: Sequence[str], device: str) -> None:
    """Write configuration, weights and tokenizer, made on this device, unless they are there: the directory appears when it is whole."""
    if directory.exists():
        return
    import torch

    torch.manual_seed(SEED)
    with torch.device(device):
        model = _model(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=WEIGHTS_BY_ROOT_OF_WIDTH / SHAPES[shape]["hidden_size"] ** 0.5)
    unfinished = directory.with_name(f"{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    _tokenizer(words, SHAPES[shape]["vocab_size"]).save_pretrained(unfinished)
    unfinished.rename(directory)


def bytes_a_step(shape: str) -> tuple[int, int]:
    """Return the bytes of weights that a step reads, and the bytes of cache that it reads for each token before.

    Of the input embedding, a step reads a few rows.
    """
    import torch

    with torch.device("meta"):
        model = _model(shape)
    size, config = model.dtype.itemsize, model.config
    weights = sum(parameter.numel() for name, parameter in model.named_parameters() if "embed_tokens" not in name)
    return weights * size, 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size


def _model(shape: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = dict(SHAPES[shape])
    dtype = getattr(torch, sizes.pop("dtype"))
    return AutoModelForCausalLM.from_config(LlamaConfig(**sizes, bos_token_id=None, eos_token_id=None), dtype=dtype)


def _tokenizer(words: Sequence[str], vocabulary_size: int) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    known = list(dict.fromkeys(words))
    known += [f"w{number}" for number in range(len(known), vocabulary_size)]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(known)}, unk_token=known[0]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
