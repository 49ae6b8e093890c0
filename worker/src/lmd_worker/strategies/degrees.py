"""How far a model can be cut, and what a rank then has, by strategy. Imports no torch.

Sources: deepspeed 0.19.8 module_inject/tp_shard.py (`get_shard_size`); transformers 5.23 distributed/tensor_parallel.py, where every
cut is torch's `Shard`: pieces of ceil(size / ranks).
"""

from __future__ import annotations

import re
from dataclasses import replace

from lmd_worker.errors import ModelRefusedError
from lmd_worker.shape import ModelShape, counts
from lmd_worker.strategies.families import COLUMNS, EMBEDDINGS_LEFT_WHOLE, HEADS_LEFT_WHOLE, PIPELINES, instead
from lmd_worker.strategies.share import Share

_MOST = 256
_REASONS = {
    "DeepSpeed": "a rank would have no key-value head",
    "Expert": "transformers cuts heads and spreads experts only evenly",
    "PipelineTensor": "transformers cuts heads only evenly",
    "Tensor": "transformers cuts heads only evenly",
}
_LISTED = 12
_LEFT_WHOLE = {
    "deepseek_v3": (".self_attn.",),
    "gpt_neox": (".embed_in.",),
    "gpt_oss": (".self_attn.", ".embed_tokens."),
    "qwen2_moe": (".shared_expert",),
}
"""What transformers' plans leave whole, by pieces of parameter names, beside routers, norms and biases."""
_ROUTERS = (".gate.", ".router.")
_LAYER = re.compile(r"\.(\d+)\.")
"""The first number in a parameter's name is its layer's."""


def legal_degrees(strategy: str, shape: ModelShape) -> list[int]:
    """Return the tensor-parallel degrees at which every rank computes its share right, ascending.

    AutoTP cuts attention in whole key-value heads with their query heads, unevenly if it must (3 heads on 2 ranks are 2 and 1); a rank
    without any would compute nothing. transformers cuts heads evenly; where it does not cut attention at all, they do not matter. Experts
    that are spread stay whole.
    """
    if strategy == "Expert":
        return [degree for degree in legal_degrees("Tensor", shape) if not shape.experts % degree]
    if strategy == "DeepSpeed":
        return list(range(1, shape.key_value_heads + 1))
    if strategy == "Pipeline":
        return [1]
    if ".self_attn." in _LEFT_WHOLE.get(shape.model_type, ()):
        return list(range(1, _MOST + 1))
    return [degree for degree in range(1, shape.key_value_heads + 1) if not (shape.heads % degree or shape.key_value_heads % degree)]


def guard_degree(strategy: str, shape: ModelShape, degree: int) -> None:
    """Raise `ModelRefusedError` naming the legal degrees unless `degree` is one."""
    legal = legal_degrees(strategy, shape)
    if degree in legal:
        return
    experts = f"{shape.experts} experts, " if strategy == "Expert" else ""
    raise ModelRefusedError(
        f"{shape.model_type} with {experts}{shape.heads} attention heads and {shape.key_value_heads} key-value heads "
        f"cannot be cut to degree {degree}: {_REASONS[strategy]}; legal degrees: {_listed(legal)}.{_uneven(strategy, shape, degree)}"
    )


def guard_stages(strategy: str, shape: ModelShape, stages: int) -> None:
    """Raise `ModelRefusedError` naming the legal pipeline degrees unless every stage gets a layer."""
    if stages <= shape.layers:
        return
    legal = f"; legal pipeline degrees: {_listed(list(range(2, shape.layers + 1)))}" if shape.layers > 1 else ""
    layers = "1 layer" if shape.layers == 1 else f"{shape.layers} layers"
    raise ModelRefusedError(
        f"{shape.model_type} with {layers} cannot be dealt out over {stages} stages: a stage would have none{legal}. "
        f"{instead(shape, besides=PIPELINES)}"
    )


def heads_of_rank(strategy: str, shape: ModelShape, rank: int, degree: int) -> tuple[int, int]:
    """Return (query heads, key-value heads) that one rank computes; the first ranks take what does not divide."""
    if strategy == "ZeroInference":  # every rank computes whole layers
        return shape.heads, shape.key_value_heads
    if strategy != "DeepSpeed" and shape.model_type in HEADS_LEFT_WHOLE:
        return shape.heads, shape.key_value_heads
    key_value = shape.key_value_heads // degree + (1 if rank < shape.key_value_heads % degree else 0)
    return shape.heads * key_value // shape.key_value_heads, key_value


def layers_of_rank(shape: ModelShape, rank: int, tensor: int, stages: int) -> range:
    """Return the numbers of the layers on one rank: as many on each stage, the rest on the last (transformers, `layer_range_for_rank`)."""
    each, stage = shape.layers // stages, rank // tensor
    return range(stage * each, shape.layers if stage == stages - 1 else (stage + 1) * each)


def autotp_share(shape: ModelShape, degree: int, grain: int) -> Share:
    """Return what the fullest rank may hold under AutoTP.

    Attention goes in key-value heads, MLPs and the output head in pieces of `grain` columns with the rest on the last rank.
    """
    widths = (
        _largest_width(shape.intermediate_size, degree, grain) / shape.intermediate_size,
        _largest_width(shape.hidden_size, degree, grain) / shape.hidden_size,
    )
    return Share(min(1.0, max(-(-shape.key_value_heads // degree) / shape.key_value_heads, *widths)))


def native_share(shape: ModelShape, degree: int) -> Share:
    """Return what the fullest rank may hold under transformers' own tensor parallelism: even pieces, the embeddings' too."""
    sizes = (shape.vocabulary_size, shape.intermediate_size)
    return Share(
        part=max(1 / degree, *(-(-size // degree) / size for size in sizes)),
        whole=(*_ROUTERS, *_LEFT_WHOLE.get(shape.model_type, ())),
        embeddings_are_whole=shape.model_type in EMBEDDINGS_LEFT_WHOLE,
        head_is_apart=False,
    )


def stage_share(shape: ModelShape, tensor: int, stages: int) -> Share:
    """Return what the fullest rank may hold of the fullest stage, whose layers are cut as `native_share` says where `tensor` is above 1."""
    part = fullest_stage(shape, stages)
    if tensor == 1:
        return Share(part=part, embeddings_are_whole=False, head_is_apart=False)
    cut = native_share(shape, tensor)
    return replace(cut, part=part * cut.part)


def fullest_stage(shape: ModelShape, stages: int) -> float:
    """Return the part of the weights that is on the stage with most of them.

    Each stage has equally many layers, the last the rest as well; the first embeds, and the last has the norm and the head, or the
    embeddings again where the head is tied to them (transformers 5.23, distributed/pipeline_parallel.py).
    """
    held = [0] * stages
    for name, count in counts(shape.path).items():
        if number := _LAYER.search(name):
            held[min(int(number[1]) // (shape.layers // stages), stages - 1)] += count
        elif "embed_tokens" not in name:
            held[-1] += count
        else:
            for stage in {0, stages - 1} if shape.tied_embeddings else {0}:
                held[stage] += count
    return max(held) / shape.parameters


def _uneven(strategy: str, shape: ModelShape, degree: int) -> str:
    """Return who can do what this strategy cannot, where one can: DeepSpeed, or a pipeline of whole layers."""
    if strategy == "PipelineTensor":
        return " Strategy Pipeline cuts none."
    if strategy == "DeepSpeed" or COLUMNS["DeepSpeed"].objection(shape) or degree not in legal_degrees("DeepSpeed", shape):
        return ""
    return " Strategy DeepSpeed cuts unevenly and can do this one."


def _listed(degrees: list[int]) -> str:
    if len(degrees) > _LISTED and degrees[-1] - degrees[0] == len(degrees) - 1:
        return f"{degrees[0]} to {degrees[-1]}"
    return ", ".join(map(str, degrees))


def _largest_width(width: int, degree: int, grain: int) -> int:
    if width < grain:
        return -(-width // degree)
    pieces, rest = divmod(width, grain)
    return -(-pieces // degree) * grain + rest
