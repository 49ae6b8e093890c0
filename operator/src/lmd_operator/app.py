"""The operator's own machinery: caches, queue, workers, leadership, health.

`__main__` starts and stops it; what kopf hears of our objects comes in by `parent_seen`.

Every process fills its caches and answers its probes; only the leader works its queue.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import random
import time
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from typing import Any

from lmd_operator.answers import Answers
from lmd_operator.api.status import Status
from lmd_operator.cluster.api import Api
from lmd_operator.cluster.cache import Cache
from lmd_operator.cluster.connection import Connection, own_namespace
from lmd_operator.cluster.door import Door
from lmd_operator.cluster.errors import ApiError
from lmd_operator.cluster.kinds import LARGE_MODEL_DEPLOYMENT, SELECTORS, WATCHED
from lmd_operator.cluster.parents import Parents
from lmd_operator.cluster.records import Record
from lmd_operator.cluster.reflector import Reflector
from lmd_operator.memory import Result
from lmd_operator.names import LABEL_DEPLOYMENT
from lmd_operator.reconcile import Reconciler
from lmd_operator.runtime import loop
from lmd_operator.runtime.events import Announcer
from lmd_operator.runtime.health import Health
from lmd_operator.runtime.leadership import Leadership
from lmd_operator.runtime.metrics import Metrics
from lmd_operator.runtime.progress import ProgressReader
from lmd_operator.runtime.queue import WorkQueue
from lmd_operator.runtime.reports import ReportReader
from lmd_operator.settings import Settings
from lmd_operator.version import VERSION

log = logging.getLogger(__name__)

Key = tuple[str, str]
RELEASE_SECONDS = 3.0
"""What giving the lease back may take at the end; a successor can wait for it to expire."""
GHOST_CHECK_SECONDS = 300.0
TIDY_SECONDS = 5.0
NEWS_SECONDS = 0.5
"""How long news of children wait for more: a pod and its Deployment tell what they become in a burst, and one look is enough for it."""
STORM_RECONCILES = 200
"""After so many, memory is given back as soon as nothing large is kept of any object any more."""


class App:
    """One running operator; made inside a running event loop."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._settings = settings
        self.metrics = Metrics()
        self._session = connection.session(f"lmd-operator/{VERSION}")
        self._watches = connection.session(f"lmd-operator/{VERSION}", limit=0)
        self._lease_session = connection.session(f"lmd-operator/{VERSION}", limit=1)
        self.api = Api(connection, self._session, self.metrics.count_request, lambda: self.leadership.is_leader, watches=self._watches)
        self.queue: WorkQueue[Key] = WorkQueue(time.monotonic)
        self.parents = Parents(self.queue.add)
        self._caches = {kind: Cache(kind, self._child_changed) for kind in WATCHED}
        self._reflectors = [
            Reflector(self.api, cache, namespace, SELECTORS.get(kind, LABEL_DEPLOYMENT), time.monotonic)
            for kind, cache in self._caches.items()
            for namespace in settings.watched_namespaces
        ]
        self._reports = ReportReader(self.queue.add, time.monotonic)
        self._answers = Answers(ProgressReader(), self._reports)
        self._door = Door(self.api, self._caches)
        self._reconciler = Reconciler(self.api, self.parents, self._caches, self._door, settings, time.monotonic, utc_now, self._answers)
        self._announcer = Announcer(self.api, settings.own_identity, utc_now)
        self.leadership = Leadership(
            Api(connection, self._lease_session, self.metrics.count_request),
            settings.lease_namespace or own_namespace(),
            settings.lease_name,
            settings.own_identity,
            time.monotonic,
        )
        self._health = Health(self.metrics, self.queue, self._reflectors)
        self.metrics.tell_of(self._statuses)
        self.metrics.objects.set_function(lambda: len(self.parents))
        self._tasks: list[asyncio.Task[None]] = []
        self._runner: Any = None
        self._ghosts_suspected = asyncio.Event()
        self._reconciled = 0

    async def start(self) -> None:
        """Start everything; returns at once."""
        self._runner = await self._health.serve(self._settings.host, self._settings.port)
        for reflector in self._reflectors:
            self._spawn(reflector.run())
        self._spawn(self._health.watch_loop())
        self._spawn(self._tidy())
        self._spawn(self._reports.run())
        self._spawn(self._lead())

    async def stop(self) -> None:
        """End everything, give the lease back and close the connection; a reconcile that runs is cut, the next one repairs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(ApiError, TimeoutError):
            await asyncio.wait_for(self.leadership.release(), RELEASE_SECONDS)
        if self._runner is not None:
            await self._runner.cleanup()
        await self._answers.close()
        for session in (self._session, self._watches, self._lease_session):
            await session.close()

    def check_for_ghosts_soon(self) -> None:
        """Have the list of our objects checked: events may have been missed."""
        self._ghosts_suspected.set()

    def parent_seen(self, document: dict[str, Any], *, is_gone: bool) -> None:
        """Take in what kopf heard of one of our objects."""
        if is_gone:
            metadata = document["metadata"]
            self.parents.remove(metadata["namespace"], metadata["name"], metadata["uid"])
        else:
            self.parents.put(document)

    def _child_changed(self, record: Record, is_gone: bool) -> None:
        if record.owner:
            self.queue.add_after((record.namespace, record.owner), NEWS_SECONDS)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(_end_if_it_failed)
        self._tasks.append(task)
        return task

    async def _lead(self) -> None:
        """Wait for all caches, then work while the lease is ours; without it stand by, with warm caches, and try again."""
        for reflector in self._reflectors:
            await reflector.synced.wait()
        self._spawn(self.leadership.run())
        while True:
            await self.leadership.acquired.wait()
            self._health.is_leader = True
            for key in self.parents:
                self.queue.add(key)
            working = [self._spawn(self._work()) for _ in range(self._settings.workers)]
            working.append(self._spawn(self._check_for_ghosts()))
            await self.leadership.lost.wait()
            self._health.is_leader = False
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
            self._tasks = [task for task in self._tasks if task not in working]

    async def _tidy(self) -> None:
        """Drop what is kept only for objects that are worked on, and give memory back when a storm is over."""
        given = 0
        while True:
            await asyncio.sleep(TIDY_SECONDS)
            self._reconciler.lately.tidy()
            if self._reconciled - given >= STORM_RECONCILES and self._reconciler.lately.is_empty:
                loop.give_back()
                given = self._reconciled

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            started = time.monotonic()
            outcome = "cut"
            try:
                outcome = await self._reconcile(key)
            finally:
                self.queue.done(key)
                self._reconciled += 1
                self.metrics.seconds.observe(time.monotonic() - started)
                self.metrics.reconciles.labels(outcome).inc()

    async def _reconcile(self, key: Key) -> str:
        try:
            result = await self._reconciler.reconcile(key)
            await self._tell(key, result)
        except ApiError as error:
            return self._try_again(key, error)
        except Exception:
            delay = self.queue.failed(key, 1.0)
            log.exception("Reconcile failed by a defect; retry_seconds=%.1f", delay, extra={"object": "/".join(key)})
            return "defect"
        if result.again_seconds is not None:
            self.queue.add_after(key, result.again_seconds)
        if result.retry is not None:
            return self._try_again(key, result.retry)
        self.queue.succeeded(key)
        if self.parents.get(key) is None:
            self.queue.forget(key)
            return "gone"
        self.queue.add_after(key, self._settings.resync_seconds * (0.9 + 0.2 * random.random()))
        return "done"

    def _try_again(self, key: Key, error: ApiError) -> str:
        delay = self.queue.failed(key, error.retry_after_seconds or 0.0)
        log.warning("Reconcile failed: %s; retry_seconds=%.2f", error, delay, extra={"object": "/".join(key)})
        return "retry"

    async def _tell(self, key: Key, result: Result) -> None:
        parent = self.parents.get(key)
        if parent is not None:
            await self._announcer.tell(parent, result.news)

    def _statuses(self) -> Iterator[tuple[Key, Status]]:
        """Yield the status of every object; of several operators, only the leader tells."""
        for key in self.parents if self.leadership.is_leader else ():
            if (parent := self.parents.get(key)) is not None:
                yield key, parent.status

    async def _check_for_ghosts(self) -> None:
        """Find objects that were deleted while nobody watched: kopf's relist does not report them (kopf 1.45.2)."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ghosts_suspected.wait(), GHOST_CHECK_SECONDS * (0.9 + 0.2 * random.random()))
            self._ghosts_suspected.clear()
            with suppress(ApiError):
                await self.drop_ghosts()

    async def drop_ghosts(self) -> None:
        """List our objects and forget those that are not there any more."""
        known = {key: parent.uid for key in self.parents if (parent := self.parents.get(key)) is not None}
        for namespace in self._settings.watched_namespaces:
            documents, _ = await self.api.list(LARGE_MODEL_DEPLOYMENT, namespace, "")
            present = {(item["metadata"]["namespace"], item["metadata"]["name"]): item["metadata"]["uid"] for item in documents}
            for key, uid in known.items():
                if namespace in (None, key[0]) and present.get(key) != uid:
                    self.parents.remove(*key, uid)


def utc_now() -> str:
    """Return the time as Kubernetes writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _end_if_it_failed(task: asyncio.Task[None]) -> None:
    """Nothing that is spawned may end by itself; if it does, a fresh process is the only honest state."""
    if not task.cancelled() and task.exception() is not None:
        log.error("A task of the operator failed; ending, so that a fresh process starts", exc_info=task.exception())
        os._exit(1)
