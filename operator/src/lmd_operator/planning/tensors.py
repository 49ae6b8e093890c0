"""The tensors of safetensors headers -> the shape of a model: every tensor in the group that says what engines do with it. Pure.

Names are those of the checkpoints of the families transformers 5.23 loads. Tensors may be told one by one, or as patterns: a name
with `*` for its numbers, and how many there are (what `lmd-worker inspect --shape` writes, short enough for a Job's last words).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lmd_operator.planning.counting import shape_of_config
from lmd_operator.planning.shapes import Elements, ModelShape, ShapeError, text_config

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_RULES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (group, re.compile(pattern))
    for group, pattern in (
        ("other", r"vision|visual|audio|multi_modal|image_newline|merger"),
        ("embeddings", r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|embedding)\.weight$"),
        ("positions", r"(^|\.)(wpe|embed_positions|position_embeddings)\.weight$"),
        ("head", r"(^|\.)(lm_head|embed_out)\.weight$"),
        ("router", r"shared_expert_gate|\.(gate|router|wg)\.|\.(gate|router)$"),
        ("shared_experts", r"shared_expert|shared_mlp"),
        ("experts", r"\.experts\."),
        ("latent", r"\.(q_a_proj|kv_a_proj_with_mqa|kv_a_proj)\."),
        ("fused", r"\.(query_key_value|qkv_proj|c_attn|Wqkv|W_pack)\."),
        ("query", r"\.(q_proj|q_b_proj|wq)\."),
        ("key_value", r"\.(k_proj|v_proj|kv_b_proj|wk|wv)\."),
        ("output", r"\.(self_attn|attention|self_attention|attn|norm_attn_norm)\.(.*\.)?(o_proj|out_proj|dense|c_proj|wo)\."),
        ("mlp", r"\.(mlp|feed_forward|ffn|fc1|fc2)(\.|$)"),
    )
)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a header, or `count` of one pattern: its name, its type's safetensors name and its dimensions."""

    name: str
    dtype: str
    dimensions: tuple[int, ...]
    count: int = 1

    @property
    def elements(self) -> int:
        """Number of values of all of them."""
        return math.prod(self.dimensions) * self.count

    @property
    def bytes(self) -> int:
        """Bytes on disk of all of them."""
        return self.elements * _BITS.get(self.dtype, 8) // 8


def shape_of(config: Mapping[str, Any], tensors: Iterable[Tensor] = ()) -> ModelShape:
    """Return the shape that a configuration and the headers of all weight files state.

    Layers beyond `num_hidden_layers` are left out: they predict several tokens at once, and transformers does not load them.
    Raises `ShapeError` when the configuration states no model.
    """
    shape = shape_of_config(config)
    loaded = [tensor for tensor in tensors if not _is_beyond(tensor.name, shape.layers)]
    if not loaded:
        return shape
    stored = sum(tensor.bytes for tensor in loaded)
    dtype = _dtype(loaded) or shape.dtype
    if shape.quantization:  # packed values are no parameters; the configuration counts them
        return replace(shape, stored_bytes=stored)
    tied = shape.is_tied if "tie_word_embeddings" in text_config(config) else not any(_group(tensor.name) == "head" for tensor in loaded)
    return replace(shape, elements=_elements(replace(shape, is_tied=tied), loaded), is_tied=tied, stored_bytes=stored, dtype=dtype)


def tensors_of(described: Iterable[object]) -> list[Tensor]:
    """Return tensors as they are told in JSON: name, dtype, dimensions and count. Raises `ShapeError` for anything else."""
    found = []
    for entry in described:
        match entry:
            case [str(name), str(dtype), [*dimensions], int(count)]:
                found.append(Tensor(name, dtype, tuple(size for size in dimensions if isinstance(size, int)), count))
            case _:
                raise ShapeError("a tensor is not told as its name, type, dimensions and count: use lmd-worker of the same version")
    return found


def _elements(shape: ModelShape, tensors: Iterable[Tensor]) -> Elements:
    counts: Counter[str] = Counter()
    for tensor in tensors:
        is_matrix = len(tensor.dimensions) > 1
        counts[_group(tensor.name) if is_matrix else "other"] += tensor.elements
    fused = counts.pop("fused", 0)
    width = shape.heads + 2 * shape.key_value_heads
    counts["query"] += fused * shape.heads // width
    counts["key_value"] += fused - fused * shape.heads // width
    if shape.is_tied:
        counts["head"] = 0
        counts["embeddings"] = min(counts["embeddings"], shape.vocabulary * shape.hidden) or counts["embeddings"]
    return Elements(**counts)


def _group(name: str) -> str:
    """Return the group of a tensor's name; the first rule that fits wins."""
    return next((group for group, pattern in _RULES if pattern.search(name)), "other")


def _is_beyond(name: str, layers: int) -> bool:
    found = _LAYER.search(name)
    return found is not None and int(found[1]) >= layers


def _dtype(tensors: Iterable[Tensor]) -> str | None:
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.bytes
    return _DTYPES.get(sizes.most_common(1)[0][0])
