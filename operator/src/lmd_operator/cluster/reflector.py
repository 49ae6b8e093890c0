"""Keeps a cache true: list, then watch, and again for ever. Nothing that the API server says ends it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from lmd_operator.cluster.api import Api
from lmd_operator.cluster.cache import Cache
from lmd_operator.cluster.errors import ApiError
from lmd_operator.cluster.records import version_number

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0
SHORTEST_WATCH_SECONDS = 1.0


class Reflector:
    """List and watch of one kind in one namespace, or in all of them."""

    def __init__(self, api: Api, cache: Cache, namespace: str | None, selector: str, clock: Callable[[], float]) -> None:
        self._api = api
        self._cache = cache
        self._namespace = namespace
        self._selector = selector
        self._clock = clock
        self._heard = clock()
        self.synced = asyncio.Event()

    @property
    def name(self) -> str:
        """What is watched, for messages."""
        return f"{self._cache.kind.plural} in {self._namespace or 'all namespaces'}"

    def silent_seconds(self) -> float:
        """How long nothing was heard, bookmarks included; above 150 the watch is stuck."""
        return self._clock() - self._heard

    async def run(self) -> None:
        """Reflect until cancelled. Every failure is retried with a growing, jittered delay."""
        failures, listed = 0, float("inf")
        while True:
            try:
                since = await self._list()
                listed = self._clock()
                await self._watch(since)
            except ApiError as error:
                # a list that succeeds is no recovery while its watch fails at once
                failures = 0 if self._clock() - listed > LONGEST_RETRY_SECONDS else failures + 1
                listed = float("inf")
                delay = min(FIRST_RETRY_SECONDS * 2 ** min(failures, 10), LONGEST_RETRY_SECONDS) * (0.5 + 0.5 * random.random())
                delay = max(delay, error.retry_after_seconds or 0.0)
                log.warning("Reflecting failed: resource=%s error=%s retry_seconds=%.1f", self.name, error, delay)
                await asyncio.sleep(delay)

    async def _list(self) -> str:
        documents, since = await self._api.list(self._cache.kind, self._namespace, self._selector)
        self._heard = self._clock()
        self._cache.replace(self._namespace, documents, version_number(since))
        self.synced.set()
        return since

    async def _watch(self, since: str) -> None:
        """Watch from `since`, again and again, until the server says that it is too long ago."""
        while True:
            began = self._clock()
            async for kind, document in self._api.watch(self._cache.kind, self._namespace, self._selector, since, self._cache.is_echo):
                self._heard = self._clock()
                metadata = document["metadata"]
                since = metadata.get("resourceVersion", since)
                if kind == "DELETED":
                    self._cache.remove(metadata["namespace"], metadata["name"], metadata["uid"])
                elif kind != "BOOKMARK":
                    self._cache.put(document)
                self._cache.hear(self._namespace, version_number(since))
            self._heard = self._clock()
            if self._heard - began < SHORTEST_WATCH_SECONDS:  # a server that is going down ends watches as soon as they begin
                await asyncio.sleep(SHORTEST_WATCH_SECONDS * (0.5 + 0.5 * random.random()))
