"""The one decision table of `strategy: Auto` and `tensor: Auto`. Pure.

Read it from the top: the first row that applies and has an engine that computes the family right, at legal degrees that fit, wins;
within it the fewest devices. The rows of one place are gone through twice, first for what was measured, then also for what nobody
compared; a larger place comes after both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from lmd_operator.planning.cutting import Split, legal_tensor_degrees
from lmd_operator.planning.families import Engine
from lmd_operator.planning.shapes import ModelShape

Link = Literal["Fast", "Slow"]
Place = Literal["one device", "one node", "several nodes", "the host"]
MOST_NODES = 16


@dataclass(frozen=True, slots=True)
class Accelerator:
    """The devices: `memory` bytes each, None when nobody said; `per_node` of them share a host and a link.

    Fast is NVLink or the like; Slow is PCIe, where two all-reduces a layer cost more than the layer.
    On CPU `memory` is the host's, which all ranks share, and the "devices" are processes.
    """

    memory: int | None
    per_node: int = 8
    link: Link = "Fast"
    is_cpu: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One row: when it applies, what it tries in this order, where it runs, and why."""

    number: int
    when: str
    applies: Callable[[ModelShape, Accelerator], bool]
    engines: tuple[Engine, ...]
    place: Place
    why: str


TABLE: tuple[Row, ...] = (
    Row(1, "it fits one device", lambda shape, devices: True, ("None",), "one device", "one process needs no communication"),
    Row(
        2,
        "it has experts, one node, fast link",
        lambda shape, devices: bool(shape.experts) and devices.link == "Fast",
        ("Expert", "Tensor"),
        "one node",
        "each rank holds some of the experts whole; AutoTP would leave all of them on every rank",
    ),
    Row(
        3,
        "it is dense, one node, fast link",
        lambda shape, devices: not shape.experts and devices.link == "Fast",
        ("DeepSpeed", "Tensor"),
        "one node",
        "every layer is cut, so each token waits for all devices at once; Tensor for families that AutoTP gets wrong",
    ),
    Row(
        4,
        "one node, slow link",
        lambda shape, devices: devices.link == "Slow",
        ("Pipeline",),
        "one node",
        "only one hand-over between stages crosses the link, instead of two sums a layer",
    ),
    Row(
        5,
        "one node, slow link, no pipeline for it",
        lambda shape, devices: devices.link == "Slow",
        ("Expert", "DeepSpeed", "Tensor"),
        "one node",
        "cut layers work over a slow link too, at the price of waiting",
    ),
    Row(
        6,
        "one node, no legal tensor degree is large enough",
        lambda shape, devices: True,
        ("PipelineTensor", "Pipeline"),
        "one node",
        "stages of cut layers use more devices than the model has heads to deal out",
    ),
    Row(
        7,
        "larger than a node",
        lambda shape, devices: not devices.is_cpu,
        ("PipelineTensor", "Pipeline"),
        "several nodes",
        "layers are cut inside a node, and stages hand over between nodes",
    ),
    Row(
        8,
        "larger than all devices",
        lambda shape, devices: not devices.is_cpu,
        ("ZeroInference",),
        "the host",
        "parameters stay in host memory and cross the bus at every step: for throughput, with large batches",
    ),
)


def splits(shape: ModelShape, engine: Engine, devices: Accelerator, place: Place) -> Iterator[Split]:
    """Yield an engine's legal splits in a place, those with fewer devices first, more tensor before more pipeline."""
    most = devices.per_node
    if place == "several nodes":
        yield from _over_nodes(shape, engine, devices)
    elif engine in ("None", "Accelerate", "ZeroInference"):
        yield Split(engine)
    elif engine in ("DeepSpeed", "Tensor"):
        yield from (Split(engine, tensor=degree) for degree in legal_tensor_degrees(shape, engine, most) if degree > 1)
    elif engine == "Expert":
        yield from (Split(engine, tensor=degree, expert=degree) for degree in legal_tensor_degrees(shape, engine, most) if degree > 1)
    elif engine == "Pipeline":
        yield from (Split(engine, pipeline=stages) for stages in range(2, min(shape.layers, most) + 1))
    else:
        tensors = [degree for degree in legal_tensor_degrees(shape, engine, most) if degree > 1]
        found = [
            Split(engine, tensor=tensor, pipeline=stages)
            for tensor in tensors
            for stages in range(2, min(most // tensor, shape.layers) + 1)
        ]
        yield from sorted(found, key=lambda split: (split.ranks, -split.tensor))


def _over_nodes(shape: ModelShape, engine: Engine, devices: Accelerator) -> Iterator[Split]:
    """Yield whole nodes: layers cut as far as a degree divides the node, the rest in stages."""
    legal = legal_tensor_degrees(shape, engine, devices.per_node)
    tensor = max(degree for degree in legal if not devices.per_node % degree)
    if engine == "PipelineTensor" and tensor == 1:
        return
    for nodes in range(2, MOST_NODES + 1):
        stages = nodes * devices.per_node // tensor
        if stages <= shape.layers:
            yield Split(engine, tensor=tensor, pipeline=stages)
