"""Liveness, readiness and metrics over HTTP.

Alive: the event loop turns, no watch is stuck, no key has waited for ages. Ready: all caches have been filled once; a
standby is ready too, so that a rolling update of the operator does not wait for leadership.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from lmd_operator.cluster.reflector import Reflector
from lmd_operator.runtime.metrics import Metrics
from lmd_operator.runtime.queue import WorkQueue

LONGEST_LAG_SECONDS = 5.0
LONGEST_SILENCE_SECONDS = 200.0
"""Above the 150 s after which a silent watch is given up, so that only one that never comes back counts."""
LONGEST_WAIT_SECONDS = 600.0
LAG_PERIOD_SECONDS = 1.0


class Health:
    """The state of this process, and the server that tells it."""

    def __init__(self, metrics: Metrics, queue: WorkQueue[tuple[str, str]], reflectors: Sequence[Reflector]) -> None:
        self._metrics = metrics
        self._queue = queue
        self._reflectors = reflectors
        self._lag = 0.0
        self.is_leader = False

    def problems(self) -> list[str]:
        """Return why this process should be restarted; empty when it should not."""
        stuck = [
            f"nothing heard of {reflector.name} for {reflector.silent_seconds():.0f} s"
            for reflector in self._reflectors
            if reflector.silent_seconds() > LONGEST_SILENCE_SECONDS
        ]
        if self._lag > LONGEST_LAG_SECONDS:
            stuck.append(f"the event loop is {self._lag:.1f} s late")
        if self.is_leader and self._queue.oldest_seconds() > LONGEST_WAIT_SECONDS:
            stuck.append(f"an object has waited {self._queue.oldest_seconds():.0f} s for its reconcile")
        return stuck

    def missing(self) -> list[str]:
        """Return what has not been listed yet."""
        return [reflector.name for reflector in self._reflectors if not reflector.synced.is_set()]

    async def watch_loop(self) -> None:
        """Measure how late timers run, until cancelled."""
        while True:
            due = time.monotonic() + LAG_PERIOD_SECONDS
            await asyncio.sleep(LAG_PERIOD_SECONDS)
            self._lag = max(0.0, time.monotonic() - due)

    async def serve(self, host: str, port: int) -> web.AppRunner:
        """Start the server; the caller ends it with `cleanup`."""
        application = web.Application()
        application.add_routes([web.get("/healthz", self._healthz), web.get("/readyz", self._readyz), web.get("/metrics", self._scrape)])
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
        return runner

    async def _healthz(self, _: web.Request) -> web.Response:
        return _answer(self.problems())

    async def _readyz(self, _: web.Request) -> web.Response:
        return _answer([f"{name} not listed yet" for name in self.missing()])

    async def _scrape(self, _: web.Request) -> web.Response:
        metrics = self._metrics
        metrics.depth.set(self._queue.depth())
        metrics.age.set(self._queue.oldest_seconds())
        metrics.lag.set(self._lag)
        metrics.leader.set(self.is_leader)
        for reflector in self._reflectors:
            metrics.silence.labels(reflector.name).set(reflector.silent_seconds())
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _answer(problems: Sequence[str]) -> web.Response:
    return web.Response(status=503 if problems else 200, text="\n".join(problems or ["ok"]) + "\n")
