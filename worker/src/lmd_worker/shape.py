"""What a model directory says about its model before anything is loaded.

Reads config.json and the headers of the safetensors files, never a tensor, so that a model which cannot be served is
refused in milliseconds instead of after minutes of loading. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmd_worker.errors import ModelRefusedError

DEFAULT_CONTEXT_TOKENS = 8192
"""The context nobody asked for is at most this long: caches of 128k tokens a request are a choice, not a default."""
UNKNOWN_LIMIT_CONTEXT_TOKENS = 2048
"""The context of a model that states no limit (ALiBi models such as BLOOM)."""

_HIDDEN = ("hidden_size", "n_embd", "d_model")
_INTERMEDIATE = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_OUTPUT_HEADS = ("lm_head.weight", "embed_out.weight")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HEADER_LENGTH_BYTES = 8
_LARGEST_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one causal language model, as its files state them.

    `key_value_heads` equals `heads` without grouped attention. `max_positions` is the most tokens of prompt and answer, None where
    the model states none. `experts` is 0 for dense models. `fused_attention` marks Falcon's older layout, one key-value head for all
    or ALiBi. `parameters` and `weight_bytes` count all tensors on disk. `quantization` is the method's name, if any.
    """

    path: Path
    model_type: str
    architectures: tuple[str, ...]
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    max_positions: int | None
    vocabulary_size: int
    experts: int
    tied_embeddings: bool
    encoder_decoder: bool
    fused_attention: bool
    quantization: str | None
    weight_files: tuple[str, ...]
    parameters: int
    weight_bytes: int

    @classmethod
    def read(cls, path: Path) -> ModelShape:
        """Read `path`/config.json and the headers of its safetensors files.

        Sizes of a multimodal model are those of its `text_config`. Raises `ModelRefusedError` when the directory, config.json or
        the safetensors are missing or broken, and when the weights exist only as pickles.
        """
        config = _config(path)
        names, parameters, weight_bytes = _weights(path)
        files = tuple(file.name for file in _safetensors(path))
        return cls.of(path, config, names=names, weight_files=files, parameters=parameters, weight_bytes=weight_bytes)

    @classmethod
    def of(
        cls,
        path: Path,
        config: Mapping[str, Any],
        *,
        names: Collection[str],
        weight_files: tuple[str, ...],
        parameters: int,
        weight_bytes: int,
    ) -> ModelShape:
        """Return the shape that a configuration and the names of all tensors state; `path` is for messages. Raises as `read`."""
        text = {**config, **config["text_config"]} if isinstance(config.get("text_config"), dict) else config
        heads = _size(text, _HEADS, path)
        hidden = _size(text, _HIDDEN, path)
        tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
        quantization = config.get("quantization_config")
        return cls(
            path=path,
            model_type=str(text.get("model_type", "")),
            architectures=tuple(config.get("architectures") or ()),
            hidden_size=hidden,
            intermediate_size=_optional(text, _INTERMEDIATE) or 4 * hidden,
            layers=_size(text, _LAYERS, path),
            heads=heads,
            key_value_heads=_key_value_heads(text, heads),
            head_dim=_optional(text, ("head_dim",)) or hidden // heads,
            max_positions=_optional(text, _POSITIONS),
            vocabulary_size=_size(text, ("vocab_size",), path),
            experts=_experts(text),
            tied_embeddings=not any(name.endswith(_OUTPUT_HEADS) for name in names) if tied is None else bool(tied),
            encoder_decoder=bool(config.get("is_encoder_decoder", False)),
            fused_attention=text.get("model_type") == "falcon" and not text.get("new_decoder_architecture", False),
            quantization=str(quantization.get("quant_method", "unknown")) if isinstance(quantization, dict) else None,
            weight_files=weight_files,
            parameters=parameters,
            weight_bytes=weight_bytes,
        )

    def context_tokens(self, asked: int | None) -> int:
        """Return the tokens of prompt and answer together that one request may have.

        What was asked, or the model's own limit but at most 8192. Raises `ModelRefusedError` when more is asked than the model has.
        """
        limit = self.max_positions
        if asked is None:
            return min(limit, DEFAULT_CONTEXT_TOKENS) if limit else UNKNOWN_LIMIT_CONTEXT_TOKENS
        if limit is not None and asked > limit:
            raise ModelRefusedError(
                f"contextTokens is {asked}, but the model at {self.path} has {limit} positions (config.json). Ask for at most {limit}."
            )
        return asked


def _config(path: Path) -> Mapping[str, Any]:
    if not path.is_dir():
        raise ModelRefusedError(f"{path}: no such directory. Check the model's source; the fetch step puts it there.")
    file = path / "config.json"
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        raise ModelRefusedError(f"{path}: there is no config.json. Give a directory in the Hugging Face layout.") from None
    except (OSError, ValueError) as error:
        raise ModelRefusedError(f"{file} cannot be read: {error}. Fetch the model again.") from error
    if not isinstance(config, dict):
        raise ModelRefusedError(f"{file} is not a JSON object. Fetch the model again.")
    return config


def _safetensors(path: Path) -> Sequence[Path]:
    return sorted(path.glob("*.safetensors"))


def _weights(path: Path) -> tuple[frozenset[str], int, int]:
    """Return tensor names, elements and bytes over all safetensors files of a directory."""
    files = _safetensors(path)
    if not files:
        pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
        if pickles:
            raise ModelRefusedError(
                f"{path} has its weights only as pickles ({pickles[0]}), which can run code when read. "
                "Convert them to safetensors, or take a revision that has them."
            )
        raise ModelRefusedError(f"{path}: there are no safetensors files. Fetch the model's weights in that format.")
    _refuse_missing_shards(path, {file.name for file in files})
    names: set[str] = set()
    parameters = total = 0
    for name, entry in _entries(files):
        names.add(name)
        parameters += math.prod(entry["shape"])
        total += entry["data_offsets"][1] - entry["data_offsets"][0]
    return frozenset(names), parameters, total


def counts(path: Path) -> dict[str, int]:
    """Return how many values each tensor on disk has, by name. Raises `ModelRefusedError` when a file is broken."""
    return {name: math.prod(entry["shape"]) for name, entry in _entries(_safetensors(path))}


def _entries(files: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield name and header entry of every tensor of these safetensors files."""
    for file in files:
        yield from ((name, entry) for name, entry in _header(file).items() if name != "__metadata__")


def _refuse_missing_shards(path: Path, present: set[str]) -> None:
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return
    try:
        listed = set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelRefusedError(f"{index} cannot be read: {error}. Fetch the model again.") from error
    if missing := sorted(listed - present):
        raise ModelRefusedError(
            f"{path}: {len(missing)} of {len(listed)} weight files are missing, the first is {missing[0]}. Fetch the model again."
        )


def _header(file: Path) -> dict[str, Any]:
    """Return the JSON header of a safetensors file: 8 bytes of length, little-endian, then the JSON."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(_HEADER_LENGTH_BYTES), "little")
            header = json.loads(stream.read(min(length, _LARGEST_HEADER_BYTES)))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelRefusedError(f"{file} is not a safetensors file: {error}. Fetch the model again.") from error
    expected = _HEADER_LENGTH_BYTES + length + end
    if file.stat().st_size < expected:
        raise ModelRefusedError(f"{file} is cut short: {file.stat().st_size} of {expected} bytes. Fetch the model again.")
    return dict(header)


def _optional(config: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _size(config: Mapping[str, Any], keys: Sequence[str], path: Path) -> int:
    value = _optional(config, keys)
    if value is None:
        raise ModelRefusedError(
            f"{path / 'config.json'} states no {keys[0]}. Only decoder language models that state their sizes can be served."
        )
    return value


def _key_value_heads(config: Mapping[str, Any], heads: int) -> int:
    if config.get("model_type") == "falcon" and not config.get("new_decoder_architecture", False):
        return 1 if config.get("multi_query", True) else heads
    if config.get("model_type") == "gpt_bigcode":
        return 1 if config.get("multi_query", True) else heads
    return _optional(config, _KEY_VALUE_HEADS) or heads


def _experts(config: Mapping[str, Any]) -> int:
    nested = config.get("ffn_config")  # DBRX
    return _optional(config, _EXPERTS) or (_optional(nested, _EXPERTS) if isinstance(nested, dict) else None) or 0
