"""Tiny random models of every family of docs/families.md: few layers, weights large enough that a wrong cut shows in the tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = 512
HIDDEN = 128
HEADS = 8
KEY_VALUE_HEADS = 4
LAYERS = 3
_END = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": None}
_PLAIN = {
    **_END,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
_GROUPED = {**_PLAIN, "num_key_value_heads": KEY_VALUE_HEADS}
_SIZED = {**_GROUPED, "head_dim": HIDDEN // HEADS}
_OLD = {**_END, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 256}
_MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": HIDDEN, "decoder_sparse_step": 1}
_LATENT = {"q_lora_rank": 64, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32}


def _of(config: str, **settings: Any) -> tuple[str, dict[str, Any]]:
    return config, settings


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": _of("BloomConfig", **_END, hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS, pad_token_id=0),
    "cohere": _of("CohereConfig", **_GROUPED),
    "deepseek_v3": _of(
        "DeepseekV3Config",
        **{**_PLAIN, "num_key_value_heads": HEADS},
        **_LATENT,
        moe_intermediate_size=HIDDEN // 2,
        n_shared_experts=1,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    ),
    "falcon": _of(
        "FalconConfig",
        **_END,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_kv_heads=KEY_VALUE_HEADS,
        new_decoder_architecture=True,
    ),
    "falcon, old": _of("FalconConfig", **_END, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, multi_query=True),
    "gemma": _of("GemmaConfig", **_SIZED),
    "gemma2": _of("Gemma2Config", **_SIZED, query_pre_attn_scalar=HIDDEN // HEADS),
    "gemma3_text": _of("Gemma3TextConfig", **_SIZED, query_pre_attn_scalar=HIDDEN // HEADS),
    "glm4": _of("Glm4Config", **_SIZED),
    "gpt2": _of("GPT2Config", **_OLD),
    "gpt_bigcode": _of("GPTBigCodeConfig", **_OLD),
    "gpt_neox": _of("GPTNeoXConfig", **_PLAIN),
    "gpt_neox, tied": _of("GPTNeoXConfig", **_PLAIN, tie_word_embeddings=True),
    "gpt_oss": _of("GptOssConfig", **_SIZED, num_local_experts=4, num_experts_per_tok=2, sliding_window=64),
    "gpt_oss, tied": _of("GptOssConfig", **_SIZED, num_local_experts=4, num_experts_per_tok=2, sliding_window=64, tie_word_embeddings=True),
    "gpt_oss, short window": _of("GptOssConfig", **_SIZED, num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
    "gptj": _of("GPTJConfig", **_OLD, rotary_dim=4),
    "granite": _of("GraniteConfig", **_GROUPED, embedding_multiplier=12.0, residual_multiplier=0.22),
    "llama": _of("LlamaConfig", **_GROUPED),
    "llama, biased": _of("LlamaConfig", **_GROUPED, attention_bias=True, mlp_bias=True),
    "llama, odd sizes": _of("LlamaConfig", **{**_GROUPED, "vocab_size": 509, "intermediate_size": 2 * HIDDEN + 5}),
    "llama, 3 key-value heads": _of("LlamaConfig", **{**_GROUPED, "hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 3}),
    "llama, tied": _of("LlamaConfig", **_GROUPED, tie_word_embeddings=True),
    "mistral": _of("MistralConfig", **_GROUPED),
    "mixtral": _of("MixtralConfig", **_GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "mpt": _of("MptConfig", **_END, d_model=HIDDEN, n_heads=HEADS, n_layers=LAYERS, max_seq_len=256),
    "olmo2": _of("Olmo2Config", **_GROUPED),
    "opt": _of(
        "OPTConfig",
        **_END,
        hidden_size=HIDDEN,
        ffn_dim=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=256,
        word_embed_proj_dim=HIDDEN,
        pad_token_id=0,
    ),
    "phi": _of("PhiConfig", **_PLAIN),
    "phi3": _of("Phi3Config", **_GROUPED),
    "qwen2": _of("Qwen2Config", **_GROUPED),
    "qwen2_moe": _of("Qwen2MoeConfig", **_GROUPED, shared_expert_intermediate_size=2 * HIDDEN, **_MIXTURE),
    "qwen3": _of("Qwen3Config", **_SIZED),
    "qwen3_moe": _of("Qwen3MoeConfig", **_SIZED, **_MIXTURE),
    "stablelm": _of("StableLmConfig", **_GROUPED),
    "starcoder2": _of("Starcoder2Config", **_GROUPED),
}
"""transformers' configuration of each, by `model_type`, with what is unusual about it after a comma."""


def save(name: str, directory: Path, **changes: Any) -> None:
    """Write the model with its tokenizer, its configuration changed so; the same weights every time."""
    import torch
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    config, settings = FAMILIES[name]
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**settings | changes), dtype=torch.float32)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw) * 0.1
            if parameter.dim() < 2 and ("norm" in label.lower() or "ln_" in label):
                parameter.add_(noise)
            else:
                parameter.copy_(noise)
    model.tie_weights()
    model.save_pretrained(directory)
    words = Tokenizer(WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(directory)
