"""What a reconcile leads to, and what is remembered of an object until the next one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from lmd_operator.api.status import ModelFacts, Status
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.cluster.door import Child
from lmd_operator.cluster.errors import ApiError
from lmd_operator.resources.desired import Desired
from lmd_operator.transitions import Told

MADE_KEPT_SECONDS = 20.0
MADE_KEPT = 1024
"""Objects whose `owner` and `made` are kept at most: 27 KiB each."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a reconcile leads to: when to look again, and what has changed in the status, for events.

    `retry` is what did not work and is worth another try soon, after the news have been told.
    """

    again_seconds: float | None = None
    current: Status | None = None
    news: list[Told] = field(default_factory=list)
    retry: ApiError | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """What an object wants, without what is large in it, and its children as they are sent.

    `is_tight` says that they are made for a cluster without room for one more replica.
    """

    built: Desired
    children: tuple[Child, ...]
    is_tight: bool = False


@dataclass(slots=True)
class Memory:
    """What is remembered of one object between two reconciles; all of it can be lost.

    `owner` and `made` are of this generation, and only kept for objects that were reconciled lately: they are large, and made from the
    object in milliseconds. `look` are the children that find out what the model is, the Job last; `model` is what it said.
    """

    generation: int = -1
    uid: str = ""
    owner: LargeModelDeployment | None = None
    made: Made | None = None
    look: tuple[Child, ...] = ()
    model: ModelFacts | None = None
    is_applied: bool = False
    status_at: float = field(default=float("-inf"))


class Lately:
    """The objects that were reconciled last; of all others the large parts of the memory are dropped.

    An object that comes up is reconciled every few seconds and would be made anew each time, whoever else comes up beside it: so it is
    time that counts, and a bound for the worst.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._memories: OrderedDict[tuple[str, str], tuple[Memory, float]] = OrderedDict()

    @property
    def is_empty(self) -> bool:
        """Whether no object was worked on lately."""
        return not self._memories

    def add(self, key: tuple[str, str], memory: Memory) -> None:
        """Note that an object is worked on now."""
        self._memories[key] = memory, self._clock()
        self._memories.move_to_end(key)
        self.tidy()

    def tidy(self) -> None:
        """Drop what is too old or too much."""
        oldest = self._clock() - MADE_KEPT_SECONDS
        while self._memories:
            longest_ago, at = next(iter(self._memories.values()))
            if at > oldest and len(self._memories) <= MADE_KEPT:
                break
            longest_ago.owner = longest_ago.made = None
            self._memories.popitem(last=False)

    def remove(self, key: tuple[str, str]) -> None:
        """Forget an object that is gone."""
        self._memories.pop(key, None)
