"""From settings to a model that answers: join the group, load the shard, test it, report, start the engine.

Every rank runs this once, in the same order. It imports torch and its libraries inside, so that the handler can be
imported and tested without them.

All that computes happens in one thread. A second one would have OpenMP threads of its own, and where there are more of them than cores,
those of both go to sleep at every operation instead of waiting for the next (libgomp): a turn of 32 requests took twice as long.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmd_worker import environment, report, verification
from lmd_worker.engine.protocol import Engine
from lmd_worker.report import RankReport
from lmd_worker.settings import Settings
from lmd_worker.shape import ModelShape
from lmd_worker.strategies import chosen, degrees, static_reason
from lmd_worker.text import Text
from lmd_worker.version import VERSION

if TYPE_CHECKING:
    from lmd_worker.engine.running import RunningEngine
    from lmd_worker.ranks import Group
    from lmd_worker.selftest import Held

_LIBRARIES = ("torch", "transformers", "deepspeed")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A rank that is ready, and what all ranks report of themselves."""

    rank: int
    engine: Engine
    text: Text
    reports: Sequence[RankReport]


def load(settings: Settings, group: Group | None = None) -> Loaded:
    """Load this rank's share and return when all ranks have passed their self-test; a process joins its group unless it has one.

    The engine goes on in the thread that has loaded. Raises `WorkerError` with a sentence; the caller ends the process, so that no peer
    waits in a collective.
    """
    outcome: Future[Loaded] = Future()

    def work() -> None:
        try:
            loaded, engine = _load(settings, group)
        except BaseException as error:  # the caller's, which waits for it
            outcome.set_exception(error)
            return
        engine.run(begun=lambda: outcome.set_result(loaded))

    threading.Thread(target=work, name="engine", daemon=True).start()
    return outcome.result()


def _load(settings: Settings, group: Group | None) -> tuple[Loaded, RunningEngine]:
    shape = ModelShape.read(settings.model_path)
    strategy = chosen(settings)
    strategy.guard(shape, settings)
    context_tokens = shape.context_tokens(settings.context_tokens)

    with _no_garbage():
        from lmd_worker import ranks, selftest
        from lmd_worker.engine import building
        from lmd_worker.engine.tokenizer import ModelText

    clock = _Clock()
    text = ModelText(settings.model_path, trust_remote_code=settings.trust_remote_code)
    group = group or ranks.join(settings)
    clock.log(group.rank, "joined the group: size=%d device=%s", group.size, group.device)
    if group.rank == 0:  # it alone speaks with clients; now, as nobody is kept waiting yet
        text.prepare()
    model = strategy.load(settings, group)
    group.barrier()
    clock.log(group.rank, "loaded: type=%s disk_bytes=%d", shape.model_type, shape.weight_bytes)
    held = selftest.check(model, shape, group, strategy.share(shape, settings))
    clock.log(group.rank, "passed the self-test: parameter_bytes=%d model_bytes=%d", held.held, held.whole)
    heads = selftest.held_heads(model, shape, group, settings.strategy, settings.pipeline)
    limits = building.Limits(
        context_tokens, settings.concurrency, settings.queue_size, settings.stall_timeout_seconds, settings.prefix_caching
    )
    layers = degrees.layers_of_rank(shape, group.rank, settings.tensor, settings.pipeline)
    objection = static_reason(settings, shape)
    deals = settings.strategy == "ZeroInference" and group.size > 1
    engine, reason = building.build(settings.scheduler, model, shape, group, heads, limits, layers=layers, objection=objection, deals=deals)
    scheduler = "Static" if reason else settings.scheduler
    clock.log(group.rank, "built the engine: scheduler=%s reason=%s", scheduler, reason or "as asked")
    own_report = _own_report(settings, group, model, held, heads)
    reports = ranks.gather_reports(group, replace(own_report, scheduler=scheduler, scheduler_reason=reason, load_seconds=clock.seconds()))
    verification.check(reports, strategy=settings.strategy, ranks=settings.ranks, degree=settings.tensor, stages=settings.pipeline)
    if group.rank == 0 and (run_directory := os.environ.get(environment.RUN_DIRECTORY)):
        report.write(reports, Path(run_directory))
    return Loaded(rank=group.rank, engine=engine, text=text, reports=reports), engine


def _own_report(settings: Settings, group: Group, model: Any, held: Held, heads: tuple[int, int]) -> RankReport:
    from lmd_worker import ranks

    dtype = next(model.parameters()).dtype
    device = next((parameter.device for parameter in model.parameters() if not parameter.is_meta), group.device)
    return RankReport(
        rank=group.rank,
        world_size=group.size,
        strategy=settings.strategy,
        degree=settings.tensor,
        pipeline=settings.pipeline,
        device=str(device),
        device_id=ranks.device_id(group.device),
        dtype=str(dtype).removeprefix("torch."),
        parameter_bytes=held.held,
        model_bytes=held.whole,
        heads=heads[0],
        key_value_heads=heads[1],
        pid=os.getpid(),
        versions={**{name: metadata.version(name) for name in _LIBRARIES}, "lmd-worker": VERSION},
        allowed_bytes=held.allowed,
    )


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Import without looking for garbage, and never look for any among what was imported.

    Half a million objects stay for good; going through them took an eighth of the imports' CPU time, and each full collection later.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


class _Clock:
    """Logs each step with its seconds."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()

    def seconds(self) -> int:
        """Return how long it has been, in whole seconds, rounded up."""
        return math.ceil(time.monotonic() - self._began)

    def log(self, rank: int, message: str, *values: object) -> None:
        now = time.monotonic()
        log.info("rank %d " + message + " seconds=%.1f", rank, *values, now - self._last)
        self._last = now
