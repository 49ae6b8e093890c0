"""Which engine a loaded model gets: the one asked for, or the static one where the model turns out to need it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmd_worker.engine import pages, trial
from lmd_worker.engine.continuous import ContinuousEngine
from lmd_worker.engine.running import RunningEngine
from lmd_worker.engine.static import StaticEngine
from lmd_worker.errors import ModelRefusedError
from lmd_worker.ranks import Group

if TYPE_CHECKING:
    from lmd_worker.settings import Scheduler
    from lmd_worker.shape import ModelShape

DEALT = "each rank decodes requests of its own, and all ranks have to take the same number of steps"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What every engine keeps to; as in `RunningEngine`, and whether the continuous one shares what prompts have in common."""

    context_tokens: int
    concurrency: int
    queue_size: int | None
    stall_timeout_seconds: float
    prefix_caching: bool = True


def build(
    scheduler: Scheduler,
    model: Any,
    shape: ModelShape,
    group: Group,
    heads: tuple[int, int],
    limits: Limits,
    *,
    layers: range,
    objection: str = "",
    deals: bool = False,
) -> tuple[RunningEngine, str]:
    """Return the engine and, where it is not the one asked for, why; the same on every rank, and every rank must call it.

    `heads` are this rank's query and key-value heads and `layers` the numbers of its layers; `objection` is why its strategy keeps to the
    static engine, if it does. `deals` says that each rank decodes requests of its own.
    Raises `ModelRefusedError` on every rank when one has no room for the cache.
    """
    options: dict[str, Any] = {
        "context_tokens": limits.context_tokens,
        "vocabulary_size": shape.vocabulary_size,
        "concurrency": limits.concurrency,
        "queue_size": limits.queue_size,
        "stall_timeout_seconds": limits.stall_timeout_seconds,
    }
    if scheduler == "Static":
        return StaticEngine(model, group, deals=deals, **options), ""
    cache, reason = (None, DEALT) if deals else _cache(model, shape, group, heads, layers, limits, objection)
    if cache is not None:
        return ContinuousEngine(model, group, cache, **options), ""
    log.warning("rank %d: scheduler Static instead of Continuous: %s", group.rank, reason)
    return StaticEngine(model, group, deals=deals, **options), reason


def _cache(
    model: Any, shape: ModelShape, group: Group, heads: tuple[int, int], layers: range, limits: Limits, objection: str
) -> tuple[pages.Pages | None, str]:
    """Return a cache with which the model computes right, or why there is none."""
    refusal = f"{shape.model_type} cannot be decoded continuously: "
    if reason := objection or trial.objection(model.config.get_text_config()):
        return None, refusal + reason
    wanted = pages.shape_for(
        model,
        heads,
        shape.head_dim,
        layers,
        context_tokens=limits.context_tokens,
        concurrency=limits.concurrency,
        shares_prefixes=limits.prefix_caching,
    )
    for complaint in group.gather_text(pages.complaint(wanted, group)):
        if complaint:
            raise ModelRefusedError(complaint)
    cache = pages.Pages(wanted, group.device)
    reason = trial.compare(model, group, cache, vocabulary_size=shape.vocabulary_size)
    return (None, refusal + reason) if reason else (cache, "")
