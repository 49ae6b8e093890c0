"""Which engine computes which model family right, measured: the columns of docs/families.md, as data. Imports no torch.

Every family named here was run against one process (torch 2.13, transformers 5.23, deepspeed 0.19.8): float32, left-padded batch of two,
greedy tokens with cache. Equal tokens put it in `right`; anything else in `wrong` with what was seen. A family in neither is refused
too: engines guess the layout of what they do not know, and some go on with a warning or none. `make matrix` runs them all again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from lmd_worker.errors import ModelRefusedError
from lmd_worker.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Column:
    """One engine's families, by config.json's `model_type`. `objects` says what it gets wrong of a family that it serves else."""

    engine: str
    right: frozenset[str]
    wrong: Mapping[str, str]
    objects: Callable[[ModelShape], str] = lambda shape: ""

    def objection(self, shape: ModelShape) -> str:
        """Return why this model is not served, as the part of a sentence that begins with its name, or nothing."""
        if text := self.objects(shape):
            return text
        if shape.model_type in self.wrong:
            return f"{shape.model_type} cannot be served with {self.engine}: {self.wrong[shape.model_type]}"
        if shape.model_type not in self.right:
            return (
                f"{shape.model_type or 'a model without model_type'} is not among the families {self.engine} was seen to cut right "
                f"({', '.join(sorted(self.right))})"
            )
        return ""


def _autotp_objection(shape: ModelShape) -> str:
    if shape.experts:
        return (
            f"{shape.model_type} has {shape.experts} experts, and AutoTP does not shard experts of transformers 5: "
            "every rank would hold all of them"
        )
    if shape.fused_attention:
        return (
            f"{shape.model_type} without new_decoder_architecture (Falcon 7B and older) cannot be served with DeepSpeed AutoTP: "
            "its fused attention has no layout that AutoTP cuts right"
        )
    return ""


def _expert_objection(shape: ModelShape) -> str:
    if not shape.experts:
        return f"{shape.model_type} has no experts that could be spread"
    return _tied_objection(shape)


def _tied_objection(shape: ModelShape) -> str:
    if shape.tied_embeddings and shape.model_type in EMBEDDINGS_LEFT_WHOLE:
        return (
            f"{shape.model_type} with an output head tied to its embeddings cannot be served with transformers' own parallelism: "
            "it cuts the head and not the embeddings, and fails or computes other tokens"
        )
    return ""


PIPELINES = frozenset({"Pipeline", "PipelineTensor"})
"""Strategies that deal the layers out."""
EMBEDDINGS_LEFT_WHOLE = frozenset({"gpt_neox", "gpt_oss"})
"""Families whose embeddings transformers' plan does not cut."""
HEADS_LEFT_WHOLE = frozenset({"deepseek_v3", "gpt_oss", "olmo2", "phi3"})
"""Families of which every rank computes all heads under transformers' own plans, and so keeps the whole key-value cache.

Attention is not cut (deepseek_v3, gpt_oss), or what its projections give is gathered again (olmo2, whose norm spans all heads, and phi3,
whose three projections are one).
"""

_NO_PLAN = "transformers 5.23 has no tensor-parallel plan for it"
_UNCUT = {
    **dict.fromkeys(("bloom", "falcon", "gpt2", "gpt_bigcode", "gptj", "mpt", "opt", "stablelm"), _NO_PLAN),
    "gpt_oss": "its plan cuts the experts only when they are spread, so every rank would hold all of them",
}
_STAGED_RIGHT = frozenset(
    {
        "cohere",
        "deepseek_v3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm4",
        "gpt_oss",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "stablelm",
        "starcoder2",
    }
)
_STAGED_WRONG = dict.fromkeys(
    ("bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "mpt", "opt", "phi"),
    "it wants a model with layers, embed_tokens and norm, and this one has other names",
)
_MIXTURES_RIGHT = frozenset({"deepseek_v3", "mixtral", "qwen2_moe", "qwen3_moe"})
_DENSE_RIGHT = frozenset(
    {
        "cohere",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm4",
        "gpt_neox",
        "granite",
        "llama",
        "mistral",
        "olmo2",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "starcoder2",
    }
)

COLUMNS: Mapping[str, Column] = {
    "DeepSpeed": Column(
        engine="DeepSpeed AutoTP",
        right=frozenset(
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
        ),
        wrong={
            "gpt2": "DeepSpeed refuses GPT-2 by name",
            "gpt_bigcode": "its single fused key-value head cannot be cut: ranks without one fail",
            "gpt_oss": "AutoTP does not cut its attention sinks",
            "olmo2": "its query norm spans all heads and AutoTP does not cut it",
            "phi3": "transformers 5 slices its fused projection by the whole model's head count",
        },
        objects=_autotp_objection,
    ),
    "Expert": Column(
        engine="transformers' expert parallelism",
        right=_MIXTURES_RIGHT | {"gpt_oss"},
        wrong={},
        objects=_expert_objection,
    ),
    "Tensor": Column(
        engine="transformers' tensor parallelism",
        right=_DENSE_RIGHT | _MIXTURES_RIGHT,
        wrong=_UNCUT,
        objects=_tied_objection,
    ),
    "Pipeline": Column(engine="transformers' pipeline", right=_STAGED_RIGHT, wrong=_STAGED_WRONG),
    "PipelineTensor": Column(
        engine="transformers' pipeline over its tensor parallelism",
        right=_STAGED_RIGHT & (_DENSE_RIGHT | _MIXTURES_RIGHT),
        wrong={**_STAGED_WRONG, **_UNCUT},
        objects=_tied_objection,
    ),
    "ZeroInference": Column(
        engine="DeepSpeed stage 3",
        right=_DENSE_RIGHT | _MIXTURES_RIGHT | {"bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_oss", "gptj", "mpt", "opt", "stablelm"},
        wrong={},
    ),
}
"""By strategy; None and what else runs one process computes every family as transformers makes it."""


def guard_family(strategy: str, shape: ModelShape) -> None:
    """Raise `ModelRefusedError`, naming what would work, unless the strategy was seen to compute this family right."""
    if text := COLUMNS[strategy].objection(shape):
        raise ModelRefusedError(f"{text}. {instead(shape)}")


def guard_plain(shape: ModelShape, engine: str) -> None:
    """Raise `ModelRefusedError` for quantized weights, which no engine here was seen to cut right."""
    if shape.quantization is not None:
        raise ModelRefusedError(
            f"the model is quantized ({shape.quantization}: quantization_config in config.json), and {engine} cuts only plain weights. "
            "Use the unquantized model, or strategy None."
        )


def instead(shape: ModelShape, besides: Collection[str] = ()) -> str:
    """Return the sentence that names the strategies that cut this model's family over devices, without those in `besides`."""
    others = [name for name, column in COLUMNS.items() if name not in {"ZeroInference", *besides} and not column.objection(shape)]
    if not others:
        return "Use strategy None, one process, if it fits one device."
    *several, last = others
    named = f"{', '.join(several)} or {last}" if several else last
    return f"Use strategy {named}, or None if it fits one device."
