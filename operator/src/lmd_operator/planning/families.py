"""Which engine computes which family right: the matrix of measured runs, as data. Pure.

Measured: tiny random models on two and more gloo ranks against one process (float32, left-padded batch of two, greedy tokens with
cache) with deepspeed 0.19.8, torch 2.13 and transformers 5.23. "right" means equal tokens. "untried" means that the library may have a
way to cut the family and nobody has compared it: the worker refuses it until somebody has, and `Auto` shows it only when nothing proven
fits. "wrong" is never planned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmd_operator.planning.shapes import ModelShape

Engine = Literal["DeepSpeed", "Tensor", "Expert", "Pipeline", "PipelineTensor", "Accelerate", "ZeroInference", "None"]
Verdict = Literal["right", "untried", "wrong"]

AUTOTP_RIGHT = frozenset(
    {
        "bloom", "cohere", "falcon", "gemma", "gemma2", "gemma3_text", "glm4", "gpt_neox", "gptj", "granite", "llama", "mistral", "mpt",
        "opt", "phi", "qwen2", "qwen3", "stablelm", "starcoder2",
    }
)  # fmt: skip
AUTOTP_WRONG = {
    "gpt2": "DeepSpeed refuses GPT-2 by name",
    "gpt_bigcode": "its single fused key-value head cannot be cut",
    "gpt_oss": "AutoTP does not cut its attention sinks",
    "olmo2": "its query norm spans all heads, and AutoTP does not cut it",
    "phi3": "transformers 5 slices its fused projection by the whole model's head count",
}
TENSOR_RIGHT = frozenset(
    {
        "cohere", "deepseek_v3", "gemma", "gemma2", "gemma3_text", "glm4", "gpt_neox", "granite", "llama", "mistral", "mixtral", "olmo2",
        "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "starcoder2",
    }
)  # fmt: skip
_WITHOUT_TENSOR_PLAN = frozenset(
    {"bloom", "dbrx", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "hunyuan_v1_dense", "lfm2", "mpt", "opt", "stablelm", "xglm"}
)
"""Families for which transformers 5.23 has no tensor-parallel plan, or one of the output head alone."""
TENSOR_WRONG = {
    **dict.fromkeys(_WITHOUT_TENSOR_PLAN, "transformers 5.23 has no tensor-parallel plan for it"),
    "gpt_oss": "its plan cuts experts only when they are spread: every rank would hold all of them",
}
EXPERT_RIGHT = frozenset({"deepseek_v3", "gpt_oss", "mixtral", "qwen2_moe", "qwen3_moe"})
EXPERT_WRONG = dict.fromkeys(_WITHOUT_TENSOR_PLAN | {"llama4", "llama4_text"}, "transformers 5.23 has no expert-parallel plan for it")
PIPELINE_RIGHT = frozenset(
    {
        "cohere", "deepseek_v3", "gemma", "gemma2", "gemma3_text", "glm4", "gpt_oss", "granite", "llama", "mistral", "mixtral", "olmo2",
        "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "stablelm", "starcoder2",
    }
)  # fmt: skip
PIPELINE_WRONG = dict.fromkeys(
    ("bloom", "dbrx", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt", "opt", "phi", "xglm"),
    "transformers' pipeline wants a model with layers, embed_tokens and norm, and this one has other names",
)
PIPELINE_TENSOR_RIGHT = PIPELINE_RIGHT & TENSOR_RIGHT
ZERO_RIGHT = AUTOTP_RIGHT | TENSOR_RIGHT | frozenset({"gpt2", "gpt_bigcode", "gpt_oss"})

MIXTURES = frozenset({"dbrx", "deepseek_v3", "gpt_oss", "mixtral", "qwen2_moe", "qwen3_moe"})
"""Families of the matrix whose models have experts."""
KNOWN = tuple(sorted(AUTOTP_RIGHT | AUTOTP_WRONG.keys() | TENSOR_RIGHT | EXPERT_RIGHT | PIPELINE_RIGHT | ZERO_RIGHT | {"dbrx"}))
"""Families that were tried under some engine."""

WHOLE_ATTENTION = frozenset({"deepseek_v3", "gpt_oss", "granitemoe", "granitemoeshared", "hunyuan_v1_moe", "jamba", "phimoe"})
"""Families whose tensor-parallel plan leaves attention whole on every rank (transformers 5.23, base_model_tp_plan)."""
WHOLE_HEADS = WHOLE_ATTENTION | {"minimax_m2", "olmo2", "olmo3", "olmoe", "phi3"}
"""Families of which every rank computes all heads under those plans, and so keeps the whole cache: attention is not cut, or what its
projections give is gathered again (`colwise_gather_output`)."""
WHOLE_EXPERTS_UNDER_TENSOR = frozenset({"gpt_oss"})
"""Mixtures whose plan cuts no experts unless they are spread whole (its share of experts a rank at degree 2: 1.00)."""
WHOLE_SHARED_EXPERTS = frozenset({"granitemoeshared", "hunyuan_v1_moe", "qwen2_moe"})
WHOLE_EMBEDDINGS = frozenset({"gpt_neox", "gpt_oss"})
"""Families whose input embeddings are not called embed_tokens, or have no plan, and stay whole."""

_STATIC = {
    **dict.fromkeys(("bloom", "falcon", "gptj", "mpt"), "its attention does not use transformers' attention interface"),
    "stablelm": "it passes no keyword arguments to its attention",
    "gpt_oss": "paged attention has no attention sinks",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of a family under an engine, and why."""

    verdict: Verdict
    evidence: str


def finding(shape: ModelShape, engine: Engine) -> Finding:
    """Return what the matrix says of this model's family under an engine."""
    if engine in ("None", "Accelerate"):
        return Finding("right", "one process computes the model as transformers makes it")
    if shape.quantization:
        return Finding("wrong", f"its weights are quantised ({shape.quantization}), and only plain weights are cut")
    if engine == "DeepSpeed":
        return _autotp(shape)
    if engine == "Tensor":
        return _tensor(shape)
    if engine == "Expert":
        return _expert(shape)
    if engine == "Pipeline":
        return _listed(shape, PIPELINE_RIGHT, PIPELINE_WRONG, "transformers' pipeline, repaired")
    if engine == "PipelineTensor":
        cut = _tensor(shape)
        if cut.verdict == "wrong":
            return cut
        return _listed(shape, PIPELINE_TENSOR_RIGHT, PIPELINE_WRONG, "transformers' pipeline over its tensor parallelism, repaired")
    return _listed(shape, ZERO_RIGHT, {}, "DeepSpeed stage 3 with parameters on the host")


def static_reason(shape: ModelShape, engine: Engine, ranks: int = 1) -> str:
    """Return why the worker decodes this model in static batches whatever scheduler is asked for, or nothing."""
    if engine == "ZeroInference" and ranks > 1:
        return "each rank decodes requests of its own, and all ranks have to take the same number of steps"
    if shape.latent is not None:
        return "its cache holds latents, which have no pages"
    return shape.unpaged or _STATIC.get(shape.family, "")


def _autotp(shape: ModelShape) -> Finding:
    if shape.experts:
        return Finding("wrong", "AutoTP does not cut experts of transformers 5: every rank would hold all of them")
    if shape.has_old_falcon_attention:
        return Finding("wrong", "AutoTP has no layout for the fused attention of Falcon 7B and older")
    wrong = {**dict.fromkeys([shape.family], "it is not on the list of families AutoTP was seen to cut right"), **AUTOTP_WRONG}
    return _listed(shape, AUTOTP_RIGHT, wrong, "DeepSpeed AutoTP")


def _tensor(shape: ModelShape) -> Finding:
    if text := _tied_apart(shape):
        return Finding("wrong", text)
    return _listed(shape, TENSOR_RIGHT, TENSOR_WRONG, "transformers' tensor parallelism")


def _tied_apart(shape: ModelShape) -> str:
    """Return why a head that is cut cannot be tied to an embedding that is not, or nothing."""
    if shape.is_tied and shape.family in WHOLE_EMBEDDINGS:
        return "its output head is tied to embeddings that transformers' plan leaves whole, and it fails or computes other tokens"
    return ""


def _expert(shape: ModelShape) -> Finding:
    if not shape.experts:
        return Finding("wrong", "it has no experts")
    if text := _tied_apart(shape):
        return Finding("wrong", text)
    return _listed(shape, EXPERT_RIGHT, EXPERT_WRONG, "transformers' expert parallelism")


def _listed(shape: ModelShape, right: frozenset[str], wrong: dict[str, str], what: str) -> Finding:
    if shape.family in right:
        return Finding("right", f"{what} gave {shape.family} the tokens of one process")
    if shape.family in wrong:
        return Finding("wrong", wrong[shape.family])
    return Finding("untried", f"{what} was not compared with one process for {shape.family or 'this family'}")
