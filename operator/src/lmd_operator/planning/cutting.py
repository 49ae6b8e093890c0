"""What each engine leaves on one rank: legal degrees, and parameters held. Pure.

Sources: AutoTP, deepspeed 0.19.8 module_inject/tp_shard.py (`get_shard_size`) and auto_tp.py; transformers 5.23
distributed/{tensor,expert,pipeline}_parallel.py, where every cut is torch's `Shard`: pieces of ceil(size / ranks).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from lmd_operator.planning.families import (
    WHOLE_ATTENTION,
    WHOLE_EMBEDDINGS,
    WHOLE_EXPERTS_UNDER_TENSOR,
    WHOLE_HEADS,
    WHOLE_SHARED_EXPERTS,
    Engine,
)
from lmd_operator.planning.shapes import ModelShape

GRAIN = 64
"""Columns in which AutoTP cuts feed-forward layers and the head, unless asked otherwise."""


@dataclass(frozen=True, slots=True)
class Split:
    """An engine and its degrees. `expert` repeats `tensor` where experts are spread: both are the same ranks."""

    engine: Engine
    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    replicas: int = 1
    """Ranks that each compute the whole model, for requests of their own, and share its parameters: those of ZeroInference."""

    @property
    def ranks(self) -> int:
        """Processes, and devices, of one replica."""
        return self.tensor * self.pipeline * self.replicas

    def __str__(self) -> str:
        degrees = [f"{name} {size}" for name, size in self._degrees()]
        return " ".join([self.engine, *(text for text in degrees if not text.endswith(" 1"))])

    def _degrees(self) -> tuple[tuple[str, int], ...]:
        return (("tensor", self.tensor), ("pipeline", self.pipeline), ("expert", self.expert), ("data", self.replicas))


def illegal(shape: ModelShape, split: Split) -> str:
    """Return why the degrees cannot be, naming the legal ones, or nothing."""
    if split.pipeline > shape.layers:
        return f"it has {shape.layers} layers; legal pipeline degrees: 1 to {shape.layers}"
    legal = legal_tensor_degrees(shape, split.engine)
    if split.tensor not in legal:
        return f"tensor degree {split.tensor} is not legal for {_heads(shape)}; legal degrees: {_listed(legal)}"
    if split.engine == "Expert" and shape.experts and shape.experts % split.expert:
        return f"its {shape.experts} experts are not divisible by {split.expert}"
    return ""


def legal_tensor_degrees(shape: ModelShape, engine: Engine, most: int = 256) -> list[int]:
    """Return the tensor degrees an engine computes right, ascending.

    AutoTP cuts in whole key-value heads, unevenly if it must, and a rank without one fails. transformers wants query and key-value
    heads divisible, unless its plan leaves attention whole; experts are spread whole.
    """
    if engine == "DeepSpeed":
        return list(range(1, min(shape.key_value_heads, most) + 1))
    if engine not in ("Tensor", "Expert", "PipelineTensor"):
        return [1]
    degrees = range(1, most + 1)
    if not has_whole_attention(shape):
        degrees = range(1, min(most, shape.key_value_heads if shape.latent is None else shape.heads) + 1)
    fitting = [degree for degree in degrees if has_whole_attention(shape) or _divides(shape, degree)]
    width = shape.expert_intermediate if shape.experts else shape.intermediate
    fitting = [degree for degree in fitting if degree <= width]
    return [degree for degree in fitting if engine != "Expert" or not shape.experts % degree]


def has_whole_attention(shape: ModelShape) -> bool:
    """Whether transformers' tensor parallelism leaves attention whole on every rank, so that heads do not matter."""
    return shape.family in WHOLE_ATTENTION


def heads_of_rank(shape: ModelShape, split: Split) -> tuple[int, int]:
    """Return (query heads, key-value heads) of the rank that has most."""
    if split.tensor == 1 or (split.engine != "DeepSpeed" and shape.family in WHOLE_HEADS):
        return shape.heads, shape.key_value_heads
    key_value = -(-shape.key_value_heads // split.tensor)
    return shape.heads * key_value // shape.key_value_heads, key_value


def layers_of_stage(layers: int, stages: int, stage: int) -> range:
    """Return the layers of a stage: equally many each, and the rest on the last (transformers, `layer_range_for_rank`)."""
    each = layers // stages
    return range(stage * each, layers if stage == stages - 1 else (stage + 1) * each)


@lru_cache(maxsize=4096)
def fullest_rank(shape: ModelShape, split: Split, grain: int = GRAIN) -> int:
    """Return the parameters on the rank that holds most."""
    ranks = {0, split.tensor - 1}  # the first has the larger cuts, the last the remainders
    return max(held(shape, split, stage, rank, grain) for stage in _unlike_stages(shape, split.pipeline) for rank in ranks)


def _unlike_stages(shape: ModelShape, stages: int) -> Iterable[int]:
    """Return the ends, and of the stages between them, which differ only in how many of their layers have experts, one of each."""
    between = {}
    for stage in range(1, stages - 1):
        own = layers_of_stage(shape.layers, stages, stage)
        between[shape.is_mixture[own.start : own.stop].count(True)] = stage
    return {0, stages - 1, *between.values()}


def held(shape: ModelShape, split: Split, stage: int, rank: int, grain: int = GRAIN) -> int:
    """Return the parameters on one rank of one pipeline stage; under ZeroInference, its even part of each."""
    if split.engine == "ZeroInference":
        return -(-shape.parameters // split.replicas)
    own = layers_of_stage(shape.layers, split.pipeline, stage)
    mixture = sum(shape.is_mixture[own.start : own.stop])
    dense = len(own) - mixture
    elements = shape.elements
    of_layers = (len(own), shape.layers)
    of_dense = (dense, shape.layers - shape.mixture_layers)
    of_mixture = (mixture, shape.mixture_layers)
    cut = _autotp_parts if split.engine == "DeepSpeed" else _transformers_parts
    parts = cut(shape, split, rank, grain)
    return (
        _ends(shape, split, stage, parts)
        + _part(elements.query + elements.key_value + elements.output, of_layers, parts["attention"])
        + _part(elements.latent, of_layers, parts["latent"])
        + _part(elements.other, of_layers, (1, 1))
        + _part(elements.mlp, of_dense, parts["mlp"])
        + _part(elements.experts, of_mixture, parts["experts"])
        + _part(elements.shared_experts, of_mixture, parts["shared"])
        + _part(elements.router, of_mixture, (1, 1))
    )


Parts = dict[str, tuple[int, int]]


def _ends(shape: ModelShape, split: Split, stage: int, parts: Parts) -> int:
    """Return what is outside the layers: the first stage embeds, the last has the head, or the embedding tied to it."""
    is_first, is_last = stage == 0, stage == split.pipeline - 1
    elements = shape.elements
    count = 0
    if is_first or (shape.is_tied and is_last):
        count += _part(elements.embeddings, (1, 1), parts["embeddings"]) + elements.positions
    if is_last and shape.is_tied and split.engine == "DeepSpeed" and split.tensor > 1:
        count += _part(elements.embeddings, (1, 1), parts["head"])  # AutoTP cuts the head and leaves the embedding tied to it whole
    return count + (_part(elements.head, (1, 1), parts["head"]) if is_last else 0)


def _autotp_parts(shape: ModelShape, split: Split, rank: int, grain: int) -> Parts:
    """Source: tp_shard.get_shard_size; the embedding is whole, the head is cut along the hidden size, experts are not cut."""
    ranks = split.tensor
    heads = shape.key_value_heads // ranks + (1 if rank < shape.key_value_heads % ranks else 0)
    by_heads = (heads, shape.key_value_heads)
    is_by_heads = shape.family == "opt"  # its fc1 and fc2 have no name that AutoTP knows for a feed-forward
    return {
        "embeddings": (1, 1),
        "head": (_grained(shape.hidden, ranks, rank, grain), shape.hidden),
        "attention": by_heads,
        "latent": (1, 1),
        "mlp": by_heads if is_by_heads else (_grained(shape.intermediate, ranks, rank, grain), shape.intermediate),
        "experts": (1, 1),
        "shared": (_grained(shape.shared_intermediate, ranks, rank, grain), max(shape.shared_intermediate, 1)),
    }


def _transformers_parts(shape: ModelShape, split: Split, rank: int, grain: int) -> Parts:
    """Source: transformers 5.23, base_model_tp_plan and base_model_ep_plan of each family; embed_tokens is cut by vocabulary."""
    ranks, family = split.tensor, shape.family
    whole = (1, 1)
    attention = whole if has_whole_attention(shape) else (_chunk(shape.heads, ranks, rank), shape.heads)
    experts = (_chunk(shape.expert_intermediate, ranks, rank), max(shape.expert_intermediate, 1))
    if split.engine == "Expert":
        experts = (_chunk(shape.experts, ranks, rank), max(shape.experts, 1))
    elif family in WHOLE_EXPERTS_UNDER_TENSOR:
        experts = whole
    return {
        "embeddings": whole if family in WHOLE_EMBEDDINGS else (_chunk(shape.vocabulary, ranks, rank), shape.vocabulary),
        "head": (_chunk(shape.vocabulary, ranks, rank), shape.vocabulary),
        "attention": attention,
        "latent": whole,
        "mlp": (_chunk(shape.intermediate, ranks, rank), shape.intermediate),
        "experts": experts,
        "shared": whole
        if family in WHOLE_SHARED_EXPERTS
        else (_chunk(shape.shared_intermediate, ranks, rank), max(shape.shared_intermediate, 1)),
    }


def _part(elements: int, of_layers: tuple[int, int], part: tuple[int, int]) -> int:
    return elements * of_layers[0] * part[0] // (of_layers[1] * part[1]) if elements else 0


def _grained(size: int, ranks: int, rank: int, grain: int) -> int:
    if size < grain:
        return size // ranks + (1 if rank < size % ranks else 0)
    pieces, rest = divmod(size, grain)
    return (pieces // ranks + (1 if rank < pieces % ranks else 0)) * grain + (rest if rank == ranks - 1 else 0)


def _chunk(size: int, ranks: int, rank: int) -> int:
    piece = -(-size // ranks)
    return max(0, min(piece, size - rank * piece))


def _divides(shape: ModelShape, degree: int) -> bool:
    if shape.latent is not None:
        return not shape.heads % degree
    return not shape.heads % degree and not shape.key_value_heads % degree


def _heads(shape: ModelShape) -> str:
    experts = f", {shape.experts} experts" if shape.experts else ""
    return f"{shape.heads} attention heads and {shape.key_value_heads} key-value heads{experts}"


def _listed(degrees: list[int]) -> str:
    return (
        f"{degrees[0]} to {degrees[-1]}"
        if len(degrees) > 8 and degrees[-1] - degrees[0] == len(degrees) - 1
        else ", ".join(map(str, degrees))
    )
