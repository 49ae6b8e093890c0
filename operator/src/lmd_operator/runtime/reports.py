"""What the ranks of replicas report, asked of their pods: no token for the pod, no permission and no write for us.

A reconcile never waits for an answer: it is given what is known and asks for the rest, and the object is looked at again when
something new is known. Every container of a replica is asked until it has answered once, a few times at most and more and more
seldom, and never more than some at a time, as an address that nobody answers at takes seconds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from lmd_operator.names import REPORT_PATH
from lmd_operator.observed import PodState, Verdict
from lmd_operator.planning.plan import Plan
from lmd_operator.rendering.layout import POD
from lmd_operator.runtime.pods import PodClient
from lmd_operator.runtime.queue import WorkQueue
from lmd_operator.status.verification import compared, unusable

MOST_PODS = 16
"""Asked of one object; of a hundred replicas of one template the first ones tell enough."""
AT_ONCE = 32
TRIES = 5
FIRST_WAIT_SECONDS = 5.0
GROWTH = 5.0
"""Thirteen minutes from the first try to the last; a replica that has loaded almost always answers the first one."""
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 5.0
LARGEST_ANSWER_BYTES = 2**18
_OK = 200

Key = tuple[str, str]


class Place(NamedTuple):
    """One container of a replica: a restarted one has new ranks, which report anew."""

    pod: str
    address: str
    restarts: int


@dataclass(slots=True)
class _Asked:
    """What is known of one place. `plan` is what its ranks should run, None once nobody asks there any more."""

    plan: Plan | None
    tries: int = 0
    verdict: Verdict | None = None


class ReportReader:
    """Asks replicas. `told` gets keys with news."""

    def __init__(self, told: Callable[[Key], None], clock: Callable[[], float], port: int = POD.operations_port) -> None:
        self._told = told
        self._client = PodClient(
            port, REPORT_PATH, most_bytes=LARGEST_ANSWER_BYTES, seconds=ANSWER_SECONDS, connect_seconds=CONNECT_SECONDS
        )
        self._queue: WorkQueue[tuple[Key, Place]] = WorkQueue(clock)
        self._known: dict[Key, dict[Place, _Asked]] = {}

    def ask(self, key: Key, plan: Plan, pods: Iterable[PodState]) -> dict[str, Verdict | None]:
        """Return what these replicas told, by pod, None for one that is still asked; without one that was asked in vain.

        Those not asked before are asked from now on, and what is known of others is forgotten.
        """
        before, now = self._known.pop(key, {}), {}
        for pod in list(pods)[:MOST_PODS]:
            place = Place(pod.name, pod.address, pod.restarts)
            if place not in before:
                self._queue.add((key, place))
            now[place] = before.get(place) or _Asked(plan)
        if now:
            self._known[key] = now
        return {place.pod: asked.verdict for place, asked in now.items() if asked.verdict is not None or asked.plan is not None}

    def forget(self, key: Key) -> None:
        """Forget an object that is gone."""
        self._known.pop(key, None)

    async def run(self) -> None:
        """Ask until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._work())

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _work(self) -> None:
        while True:
            question = await self._queue.get()
            try:
                await self._try(*question)
            finally:
                self._queue.done(question)

    async def _try(self, key: Key, place: Place) -> None:
        """Ask once; on silence plan another try, or give up."""
        asked = self._known.get(key, {}).get(place)
        if asked is None or asked.plan is None:
            return
        asked.tries += 1
        status, body = await self._client.get(place.address)
        if status == _OK:
            asked.verdict = _verdict(asked.plan, body)
        elif asked.tries < TRIES:
            self._queue.add_after((key, place), FIRST_WAIT_SECONDS * GROWTH ** (asked.tries - 1))
            return
        elif status:
            asked.verdict = unusable(f"the answer is HTTP status {status}")
        asked.plan = None
        self._told(key)


def _verdict(plan: Plan, body: bytes | None) -> Verdict:
    if body is None:
        return unusable(f"the answer is larger than {LARGEST_ANSWER_BYTES} bytes")
    try:
        return compared(plan, json.loads(body))
    except (ValueError, RecursionError):
        return unusable("the answer is no JSON")
