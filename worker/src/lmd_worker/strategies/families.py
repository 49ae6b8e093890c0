"""Which model families DeepSpeed AutoTP cuts right, measured, and how far each can be cut.

Every family here was run against one process on deepspeed 0.19.8 and transformers 5.23: float32, left-padded batch of two,
greedy tokens with cache, 2 and 3 ranks. Equal tokens put it in `SUPPORTED`; anything else in `REFUSED` with what was seen.
A family in neither is refused too: AutoTP guesses the layout of what it does not know and goes on with a warning. Imports no torch.
"""

from __future__ import annotations

from lmd_worker.errors import ModelRefusedError
from lmd_worker.shape import ModelShape

SUPPORTED = frozenset(
    {
        "bloom",
        "cohere",
        "falcon",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm4",
        "gpt_neox",
        "gptj",
        "granite",
        "llama",
        "mistral",
        "mpt",
        "opt",
        "phi",
        "qwen2",
        "qwen3",
        "stablelm",
        "starcoder2",
    }
)
"""config.json's `model_type` of families whose tokens equal those of one process."""

REFUSED = {
    "gpt2": "DeepSpeed refuses GPT-2 by name",
    "gpt_bigcode": "its single fused key-value head cannot be cut: ranks without one fail",
    "gpt_oss": "AutoTP does not cut its attention sinks",
    "olmo2": "its query norm spans all heads and AutoTP does not cut it",
    "phi3": "transformers 5 slices its fused projection by the whole model's head count",
}
"""Families that fail, with the reason; all of them at the first forward, which is why they are refused here."""

_INSTEAD = "Use strategy None, one process, if it fits one device."


def guard_family(shape: ModelShape) -> None:
    """Raise `ModelRefusedError` unless AutoTP was seen to cut this family right."""
    if shape.experts:
        raise ModelRefusedError(
            f"{shape.model_type} has {shape.experts} experts, and AutoTP does not shard experts of transformers 5: "
            f"every rank would hold all of them. {_INSTEAD}"
        )
    if shape.model_type in REFUSED:
        raise ModelRefusedError(f"{shape.model_type} cannot be served with DeepSpeed AutoTP: {REFUSED[shape.model_type]}. {_INSTEAD}")
    if shape.fused_attention:
        raise ModelRefusedError(
            f"{shape.model_type} without new_decoder_architecture (Falcon 7B and older) cannot be served with DeepSpeed AutoTP: "
            f"its fused attention has no layout that AutoTP cuts right. {_INSTEAD}"
        )
    if shape.model_type not in SUPPORTED:
        raise ModelRefusedError(
            f"{shape.model_type or 'a model without model_type'} is not among the families DeepSpeed AutoTP was seen to cut right "
            f"({', '.join(sorted(SUPPORTED))}). {_INSTEAD}"
        )


def legal_degrees(shape: ModelShape) -> list[int]:
    """Return the tensor-parallel degrees at which every rank has work, ascending.

    AutoTP cuts attention in whole key-value heads with their query heads, unevenly if it must (3 heads on 2 ranks are 2 and 1);
    a rank without any would compute nothing. Source: deepspeed 0.19.8 module_inject/tp_shard.py.
    """
    return list(range(1, shape.key_value_heads + 1))


def guard_degree(shape: ModelShape, degree: int) -> None:
    """Raise `ModelRefusedError` naming the legal degrees unless `degree` is one."""
    legal = legal_degrees(shape)
    if degree not in legal:
        raise ModelRefusedError(
            f"{shape.model_type} with {shape.heads} attention heads and {shape.key_value_heads} key-value heads "
            f"cannot be cut to degree {degree}: a rank would have no key-value head; legal degrees: {', '.join(map(str, legal))}."
        )


def heads_of_rank(shape: ModelShape, rank: int, degree: int) -> tuple[int, int]:
    """Return (query heads, key-value heads) on one rank; the first ranks take what does not divide."""
    key_value = shape.key_value_heads // degree + (1 if rank < shape.key_value_heads % degree else 0)
    return shape.heads * key_value // shape.key_value_heads, key_value


def largest_part(shape: ModelShape, degree: int, grain: int) -> float:
    """Return the largest rank's part of what AutoTP cuts, at most 1.

    Attention goes in key-value heads, MLPs and the output head in pieces of `grain` columns with the rest on the last rank.
    Source: deepspeed 0.19.8 module_inject/tp_shard.py, get_shard_size.
    """
    widths = (
        _largest_width(shape.intermediate_size, degree, grain) / shape.intermediate_size,
        _largest_width(shape.hidden_size, degree, grain) / shape.hidden_size,
    )
    return min(1.0, max(-(-shape.key_value_heads // degree) / shape.key_value_heads, *widths))


def _largest_width(width: int, degree: int, grain: int) -> int:
    if width < grain:
        return -(-width // degree)
    pieces, rest = divmod(width, grain)
    return -(-pieces // degree) * grain + rest
