"""config.json -> the shape of a model, its parameters counted from its sizes alone. Pure.

The counts are those of the modules that transformers 5.23 builds; what a configuration leaves out has that library's default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lmd_operator.planning.shapes import (
    BYTES,
    Elements,
    Latent,
    ModelShape,
    ShapeError,
    mixture_layers,
    natural,
    sliding_layers,
    text_config,
)

_UNGATED = frozenset(
    {
        "apertus", "arcee", "bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "codegen", "mpt", "nemotron", "opt",
        "phi", "persimmon", "starcoder2", "xglm",
    }
)  # fmt: skip
"""Families whose feed-forward has two matrices; all others have a gate as a third."""
_TIED_BY_DEFAULT = frozenset(
    {
        "bloom", "cohere", "cohere2", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_bigcode", "gpt_neo", "mpt", "opt",
        "starcoder2", "xglm",
    }
)  # fmt: skip
_EXPERT_WIDTH_IS_INTERMEDIATE = frozenset({"llama4_text", "llama4"})
"""Families that call the experts' width `intermediate_size` and the dense layers' `intermediate_size_mlp`."""
_OFTEN_SHARED = {"llama4_text": 1, "llama4": 1}
"""Shared experts a mixture layer of families that do not state their number."""
_QUANTIZED_BITS = {"fp8": 8.0, "fbgemm_fp8": 8.0, "mxfp4": 4.25, "gptq": 4.3, "awq": 4.3, "bitsandbytes": 4.5, "compressed-tensors": 8.0}
"""Bits a quantised parameter takes on average, scales included; headers say it exactly, these are for a configuration alone."""
_PAGED_KINDS = frozenset({"full_attention", "sliding_attention"})
_LENGTH_DEPENDENT = frozenset({"dynamic", "longrope"})
"""As lmd_worker.engine.trial: kinds of layers that have pages, and positions that the longest request of a batch decides."""


def shape_of_config(config: Mapping[str, Any]) -> ModelShape:
    """Return the shape that a configuration states. Raises `ShapeError` naming what is missing."""
    text = text_config(config)
    family = str(text.get("model_type", ""))
    attention_part = text.get("attn_config") if isinstance(text.get("attn_config"), Mapping) else {}
    hidden = _needed(text, "hidden_size", "n_embd", "d_model")
    layers = _needed(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    heads = _needed(text, "num_attention_heads", "n_head", "n_heads", "num_heads")
    vocabulary = _needed(text, "vocab_size", "embedding_size")
    key_value_heads = _key_value_heads(text, attention_part or {}, heads)
    latent = _latent(text)
    head_dim = natural(text, "head_dim") or hidden // heads
    experts, expert_width, shared_width, per_token = _experts(text, family)
    mixture = mixture_layers(text, layers) if experts else (False,) * layers
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    quantization = config.get("quantization_config")
    shape = ModelShape(
        family=family,
        hidden=hidden,
        layers=layers,
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=head_dim,
        intermediate=_dense_width(text, family, hidden),
        vocabulary=vocabulary,
        max_positions=natural(text, "max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length") or None,
        is_tied=family in _TIED_BY_DEFAULT if tied is None else bool(tied),
        dtype=_dtype(text, config),
        quantization=str(quantization.get("quant_method", "unknown")) if isinstance(quantization, Mapping) else "",
        stored_bytes=0,
        elements=Elements(),
        experts=experts,
        experts_per_token=per_token,
        expert_intermediate=expert_width,
        shared_intermediate=shared_width,
        is_mixture=mixture,
        latent=latent,
        window=natural(text, "sliding_window") or None,
        is_sliding=sliding_layers(text, layers),
        unpaged=_unpaged(text),
        has_old_falcon_attention=family == "falcon" and not text.get("new_decoder_architecture", False),
    )
    elements = _elements(shape, text)
    return replace(shape, elements=elements, stored_bytes=stored_bytes(elements, shape.dtype, shape.quantization))


def stored_bytes(elements: Elements, dtype: str, quantization: str) -> int:
    """Return the bytes of the weight files as estimated from the count; quantisation leaves embeddings and head as they are."""
    item = BYTES.get(dtype, 2)
    if not quantization:
        return elements.total * item
    plain = elements.embeddings + elements.head + elements.positions + elements.other
    if quantization == "mxfp4":  # only experts are packed (gpt-oss)
        plain = elements.total - elements.experts
    return int(plain * item + (elements.total - plain) * _QUANTIZED_BITS.get(quantization, 8.0 * item) / 8)


def _elements(shape: ModelShape, text: Mapping[str, Any]) -> Elements:
    hidden, layers, dense = shape.hidden, shape.layers, shape.layers - shape.mixture_layers
    matrices = 2 if shape.family in _UNGATED else 3
    query, key_value, output, latent = _attention(shape)
    embedding_width = natural(text, "word_embed_proj_dim") or hidden
    embeddings = shape.vocabulary * embedding_width
    projections = 2 * hidden * embedding_width if embedding_width != hidden else 0
    return Elements(
        embeddings=embeddings,
        positions=_positions(shape, text),
        head=0 if shape.is_tied else embeddings,
        query=layers * query,
        key_value=layers * key_value,
        output=layers * output,
        latent=layers * latent,
        mlp=dense * matrices * hidden * shape.intermediate,
        experts=shape.mixture_layers * shape.experts * matrices * hidden * shape.expert_intermediate,
        shared_experts=shape.mixture_layers * matrices * hidden * shape.shared_intermediate,
        router=shape.mixture_layers * hidden * shape.experts,
        other=projections + (2 * layers + 1) * hidden,
    )


def _attention(shape: ModelShape) -> tuple[int, int, int, int]:
    """Return one layer's parameters of queries, keys and values, output, and latent projections."""
    hidden, heads = shape.hidden, shape.heads
    if (mla := shape.latent) is not None:
        query_width = heads * (mla.nope_dim + mla.rope_dim)
        query = (mla.query_rank or hidden) * query_width
        latent = hidden * mla.query_rank + hidden * (mla.key_value_rank + mla.rope_dim)
        return query, mla.key_value_rank * heads * (mla.nope_dim + mla.value_dim), heads * mla.value_dim * hidden, latent
    width = heads * shape.head_dim
    return hidden * width, 2 * hidden * shape.key_value_heads * shape.head_dim, width * hidden, 0


def _positions(shape: ModelShape, text: Mapping[str, Any]) -> int:
    """Return the learned table of positions, which only early families have; OPT's starts two later."""
    if shape.family in ("gpt2", "gpt_bigcode", "gpt_neo"):
        return (shape.max_positions or 0) * shape.hidden
    if shape.family == "opt":
        return ((shape.max_positions or 0) + 2) * shape.hidden
    return 0


def _needed(text: Mapping[str, Any], *keys: str) -> int:
    value = natural(text, *keys)
    if not value:
        raise ShapeError(f"config.json states no {keys[0]}: only decoder language models that state their sizes can be planned")
    return value


def _key_value_heads(text: Mapping[str, Any], attention: Mapping[str, Any], heads: int) -> int:
    family = text.get("model_type")
    if family == "gpt_bigcode" or (family == "falcon" and not text.get("new_decoder_architecture", False)):
        return 1 if text.get("multi_query", True) else heads
    return natural(text, "num_key_value_heads", "num_kv_heads", "n_head_kv") or natural(attention, "kv_n_heads") or heads


def _latent(text: Mapping[str, Any]) -> Latent | None:
    rank = natural(text, "kv_lora_rank")
    if not rank:
        return None
    nope, value = natural(text, "qk_nope_head_dim"), natural(text, "v_head_dim")
    return Latent(natural(text, "q_lora_rank"), rank, natural(text, "qk_rope_head_dim"), nope or value, value or nope)


def _experts(text: Mapping[str, Any], family: str) -> tuple[int, int, int, int]:
    """Return experts, the width of one, the width of all shared ones, and how many a token visits."""
    nested = text.get("ffn_config") if isinstance(text.get("ffn_config"), Mapping) else {}  # DBRX
    part = {**text, **(nested or {})}
    experts = natural(part, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    if experts < 2:
        return 0, 0, 0, 0
    width = natural(part, "moe_intermediate_size") or natural(part, "intermediate_size", "ffn_hidden_size")
    count = natural(part, "n_shared_experts", "num_shared_expert", "moe_num_shared_experts") or _OFTEN_SHARED.get(family, 0)
    shared = natural(part, "shared_expert_intermediate_size", "shared_intermediate_size") or count * width
    return experts, width, shared, natural(part, "num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k", "moe_topk") or 1


def _unpaged(text: Mapping[str, Any]) -> str:
    """Return why the continuous engine cannot even try such a model, or nothing."""
    if set(map(str, text.get("layer_types") or ())) - _PAGED_KINDS:
        return "it has layers whose state has no pages"
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    parts = (rope, *rope.values()) if isinstance(rope, Mapping) else ()
    kinds = {str(part.get("rope_type", part.get("type"))) for part in parts if isinstance(part, Mapping)}
    return "its positions are scaled by the longest request of a batch" if kinds & _LENGTH_DEPENDENT else ""


def _dense_width(text: Mapping[str, Any], family: str, hidden: int) -> int:
    if family in _EXPERT_WIDTH_IS_INTERMEDIATE and natural(text, "intermediate_size_mlp"):
        return natural(text, "intermediate_size_mlp")
    ratio = text.get("expansion_ratio")
    given = natural(text, "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
    return given or math.floor(hidden * (ratio if isinstance(ratio, (int, float)) else 4))


def _dtype(text: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    named = next((part[key] for part in (text, config) for key in ("dtype", "torch_dtype") if isinstance(part.get(key), str)), "bfloat16")
    return named if named in BYTES else "bfloat16"
