"""Looking for the smallest split of an engine that fits, and remembering what the others failed on. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from lmd_operator.planning.answers import Wishes
from lmd_operator.planning.cutting import Split, illegal
from lmd_operator.planning.families import Engine
from lmd_operator.planning.memory import GIB, HEADROOM, Load, device_memory
from lmd_operator.planning.selection import Accelerator, Place, splits
from lmd_operator.planning.shapes import ModelShape


@dataclass(slots=True)
class Search:
    """One question and what has been looked at for it."""

    shape: ModelShape
    devices: Accelerator
    wishes: Wishes
    load: Load
    rejected: dict[Engine, str] = field(default_factory=dict)
    closest: tuple[int, Split] | None = None

    def limit(self, split: Split) -> int | None:
        """Return the bytes one rank may use."""
        if self.devices.memory is None:
            return None
        usable = int(self.devices.memory * (1 - HEADROOM))
        return max(0, usable - self.wishes.java_heap) // split.ranks if self.devices.is_cpu else usable

    def fits(self, split: Split, load: Load) -> bool:
        """Whether the fullest rank has room."""
        return self._excess(split, load) <= 0

    def first_fitting(self, engine: Engine, place: Place) -> tuple[Split | None, str]:
        """Return the smallest split of an engine that fits, or what its last one failed on."""
        last: Split | None = None
        for split in self._candidates(engine, place):
            if self.wishes.tensor != "Auto" and (why := illegal(self.shape, split)):
                return None, why
            if place in ("one node", "the host") and split.ranks > self.devices.per_node:
                return None, f"{split.ranks} devices are more than the {self.devices.per_node} of a node"
            if (excess := self._excess(split, self.load)) <= 0:
                return split, ""
            if self.closest is None or excess < self.closest[0]:
                self.closest = (excess, split)
            last = split
        return None, self.shortfall(
            last
        ) if last else "it has no legal split here" if self.wishes.tensor == "Auto" else "the degrees asked for are not its own"

    def _candidates(self, engine: Engine, place: Place) -> Iterator[Split]:
        wishes = self.wishes
        if wishes.tensor == "Auto":
            for split in splits(self.shape, engine, self.devices, place):
                if wishes.pipeline in (1, split.pipeline) and wishes.expert in (1, split.expert):
                    yield replace(split, replicas=wishes.data)
            return
        fixed = _fixed(engine, wishes)
        if fixed is not None and (place != "several nodes" or fixed.ranks > self.devices.per_node):
            yield fixed

    def _excess(self, split: Split, load: Load) -> int:
        """Return by how many bytes the fullest rank needs more than it has; nothing where that is not known."""
        limit = self.limit(split)
        return 0 if limit is None else device_memory(self.shape, split, load).needed - limit

    def shortfall(self, split: Split) -> str:
        """Return in words what a split needs and has."""
        needed, limit = device_memory(self.shape, split, self.load).needed, self.limit(split) or 0
        return f"{split} needs {needed / GIB:.1f} GiB on its fullest rank, which has {limit / GIB:.1f} GiB to use"


def _fixed(engine: Engine, wishes: Wishes) -> Split | None:
    """Return the split that asked degrees mean for an engine, None where they mean another engine; the tensor degree is a number."""
    tensor, pipeline, expert = int(wishes.tensor), wishes.pipeline, wishes.expert
    match engine:
        case "None" | "Accelerate" | "ZeroInference":
            return Split(engine, replicas=wishes.data) if tensor == pipeline == expert == 1 else None
        case "DeepSpeed" | "Tensor":
            return Split(engine, tensor=tensor) if tensor > 1 and pipeline == expert == 1 else None
        case "Expert":
            ranks = max(tensor, expert)
            return Split(engine, tensor=ranks, expert=ranks) if ranks > 1 and pipeline == 1 and tensor in (1, ranks) else None
        case "Pipeline":
            return Split(engine, pipeline=pipeline) if pipeline > 1 and tensor == expert == 1 else None
        case "PipelineTensor":
            return Split(engine, tensor=tensor, pipeline=pipeline) if tensor > 1 and pipeline > 1 and expert == 1 else None
