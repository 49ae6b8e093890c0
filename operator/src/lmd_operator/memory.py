"""What a reconcile leads to, and what is remembered of an object until the next one."""

from __future__ import annotations

from dataclasses import dataclass, field

from lmd_operator.api.status import ModelFacts, Status
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.cluster.door import Child
from lmd_operator.cluster.errors import ApiError
from lmd_operator.resources.desired import Desired
from lmd_operator.transitions import Told


@dataclass(frozen=True, slots=True)
class Result:
    """What a reconcile leads to: when to look again, and what has changed in the status, for events.

    `retry` is what did not work and is worth another try soon, after the news have been told.
    """

    again_seconds: float | None = None
    current: Status | None = None
    news: list[Told] = field(default_factory=list)
    retry: ApiError | None = None


@dataclass(slots=True)
class Memory:
    """What is remembered of one object between two reconciles; all of it can be lost.

    `look` are the children that find out what the model is, the Job last; `model` is what it said.
    """

    generation: int = -1
    uid: str = ""
    owner: LargeModelDeployment | None = None
    built: Desired | None = None
    children: tuple[Child, ...] = ()
    look: tuple[Child, ...] = ()
    model: ModelFacts | None = None
    is_applied: bool = False
    status_at: float = field(default=float("-inf"))
