"""A work queue of keys, as controllers use it: each key is worked on once at a time, and never forgotten.

A key that is added while it waits is not added again; one that is added while it is worked on is worked on again
afterwards. Failures back off per key, exponentially with jitter; delays are kept in one heap, the earliest wins.
Single-threaded: everything runs in one event loop. Time is monotonic.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

FIRST_BACKOFF_SECONDS = 0.05
LONGEST_BACKOFF_SECONDS = 60.0
STALE_DATES = 1000
"""Dates that hold no more, kept before they are cleared away; a busy key leaves one a reconcile, ten hours ahead."""


class WorkQueue(Generic[Key]):
    """Keys that need work. `clock` is the event loop's time, in seconds."""

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._jitter = jitter
        self._ready: OrderedDict[Key, float] = OrderedDict()
        self._active: set[Key] = set()
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._delayed: list[tuple[float, int, Key]] = []
        self._due: dict[Key, float] = {}
        self._sequence = 0
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()

    def add(self, key: Key) -> None:
        """Ask for work on a key, now."""
        self._due.pop(key, None)
        if key in self._active:
            self._again.add(key)
        elif key not in self._ready:
            self._ready[key] = self._clock()
            self._wake.set()

    def add_after(self, key: Key, delay_seconds: float) -> None:
        """Ask for work on a key later; an earlier date that is already known stays."""
        due = self._clock() + delay_seconds
        if key in self._ready or self._due.get(key, float("inf")) <= due:
            return
        self._due[key] = due
        self._sequence += 1
        heapq.heappush(self._delayed, (due, self._sequence, key))
        is_next = self._delayed[0][1] == self._sequence
        if len(self._delayed) > 2 * len(self._due) + STALE_DATES:
            self._delayed = [entry for entry in self._delayed if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._delayed)
        if is_next:
            self._wake.set()

    async def get(self) -> Key:
        """Wait for a key and mark it as worked on; call `done` when the work has ended.

        One worker waits and the others queue up behind it: waking all of them for every key took a tenth of the CPU.
        """
        async with self._turn:
            return await self._next()

    async def _next(self) -> Key:
        while True:
            self._promote()
            if self._ready:
                key, _ = self._ready.popitem(last=False)
                self._active.add(key)
                return key
            self._wake.clear()
            timeout = self._delayed[0][0] - self._clock() if self._delayed else None
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wake.wait()

    def done(self, key: Key) -> None:
        """Say that the work on a key has ended; what was asked for meanwhile becomes ready."""
        self._active.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def failed(self, key: Key, at_least_seconds: float = 0.0) -> float:
        """Ask for another try after a growing delay, and return it in seconds."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        delay: float = min(FIRST_BACKOFF_SECONDS * 2.0 ** min(count, 20), LONGEST_BACKOFF_SECONDS) * (0.5 + 0.5 * self._jitter())
        delay = max(delay, at_least_seconds)
        self.add_after(key, delay)
        return delay

    def succeeded(self, key: Key) -> None:
        """Forget earlier failures."""
        self._failures.pop(key, None)

    def forget(self, key: Key) -> None:
        """Forget everything about a key that no longer exists."""
        self.succeeded(key)
        self._due.pop(key, None)
        self._ready.pop(key, None)
        self._again.discard(key)

    def depth(self) -> int:
        """Keys that are ready and wait for a worker."""
        return len(self._ready)

    def oldest_seconds(self) -> float:
        """How long the oldest ready key has waited."""
        return self._clock() - next(iter(self._ready.values())) if self._ready else 0.0

    def _promote(self) -> None:
        now = self._clock()
        while self._delayed and self._delayed[0][0] <= now:
            due, _, key = heapq.heappop(self._delayed)
            if self._due.get(key) == due:
                self.add(key)
