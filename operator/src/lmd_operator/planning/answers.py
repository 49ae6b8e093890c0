"""What a planner is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmd_operator.planning.cutting import GRAIN, Split
from lmd_operator.planning.families import Engine
from lmd_operator.planning.memory import GIB, DeviceMemory, HostMemory, Load, Scheduler, Weights


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is asked for. With `tensor` a number all degrees are fixed; with Auto those above 1 are."""

    strategy: Engine | Literal["Auto"] = "Auto"
    tensor: int | Literal["Auto"] = "Auto"
    pipeline: int = 1
    expert: int = 1
    data: int = 1
    context_tokens: int | None = None
    concurrency: int = 8
    dtype: str = "bfloat16"
    scheduler: Scheduler = "Continuous"
    grain: int = GRAIN
    weights: Weights = "Full"
    disk_buffer: int = 0
    java_heap: int = GIB // 2
    is_fetched: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """An alternative that was not taken, and what it failed on."""

    engine: Engine
    why: str


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan. `limit` is what the fullest rank may use, None when the device's memory is not known; `nodes` is how many it spans."""

    split: Split
    load: Load
    memory: DeviceMemory
    host: HostMemory
    limit: int | None
    nodes: int
    reasons: tuple[str, ...]
    rejected: tuple[Rejected, ...]
    largest_context: int
    largest_concurrency: int

    @property
    def devices(self) -> int:
        """Devices of one replica."""
        return self.split.ranks


@dataclass(frozen=True, slots=True)
class Unplannable:
    """No plan: why, what each alternative failed on, and what to do."""

    why: str
    remedy: str
    rejected: tuple[Rejected, ...] = ()
