"""One leader at a time, by a Lease.

Expiry is judged by how long we ourselves have not seen the holder renew, on our monotonic clock: clocks of two machines
never need to agree. Every write stays safe with two leaders all the same, as a paused process cannot know that it lost.
Durations are those of client-go.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable
from typing import Any

from lmd_operator.cluster.api import Api
from lmd_operator.cluster.errors import ApiError
from lmd_operator.cluster.kinds import LEASE

log = logging.getLogger(__name__)

LEASE_SECONDS = 15
RENEW_DEADLINE_SECONDS = 10.0
RETRY_SECONDS = 2.0
SHORTEST_PAUSE_SECONDS = 0.05


class Leadership:
    """Our claim to one Lease. `is_leader` is True only while renewals are younger than the deadline.

    Either `acquired` or `lost` is set, as `run` last found it.
    """

    def __init__(self, api: Api, namespace: str, name: str, identity: str, clock: Callable[[], float]) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._renewed = float("-inf")
        self._seen: tuple[str, str] = ("", "")
        self._seen_at = clock()
        self._expires_at = float("-inf")
        self.acquired = asyncio.Event()
        self.lost = asyncio.Event()
        self.lost.set()

    @property
    def is_leader(self) -> bool:
        """Whether we may write now."""
        return self._clock() - self._renewed < RENEW_DEADLINE_SECONDS

    async def run(self) -> None:
        """Acquire, renew, and after a loss acquire again, until cancelled."""
        while True:
            try:
                await asyncio.wait_for(self._try(), RENEW_DEADLINE_SECONDS / 2)
            except (ApiError, TimeoutError) as error:
                words = str(error) or "no answer"
                log.warning("The lease could not be renewed: lease=%s/%s error=%s", self._namespace, self._name, words)
            self._conclude()
            await asyncio.sleep(self._pause_seconds())

    def _pause_seconds(self) -> float:
        """Return when to look again: a standby looks as soon as the holder's time is up, not up to a whole pause later."""
        left = self._expires_at - self._clock()
        return RETRY_SECONDS if self.is_leader or left <= 0 else min(RETRY_SECONDS, left + SHORTEST_PAUSE_SECONDS)

    def _conclude(self) -> None:
        if self.is_leader == self.acquired.is_set():
            return
        where = (self._namespace, self._name, self._identity)
        if self.is_leader:
            log.info("Became the leader: lease=%s/%s identity=%s", *where)
            self.lost.clear()
            self.acquired.set()
        else:
            log.warning("Leadership was lost; standing by: lease=%s/%s identity=%s", *where)
            self.acquired.clear()
            self.lost.set()

    async def release(self) -> None:
        """Give the lease back, so that a successor need not wait for it to expire."""
        if not self.acquired.is_set() or not self.is_leader:
            return
        lease = await self._api.get(LEASE, self._namespace, self._name)
        if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
            lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
            await self._api.replace(LEASE, lease)

    async def _try(self) -> None:
        started = self._clock()
        lease = await self._api.get(LEASE, self._namespace, self._name)
        if lease is None:
            await self._api.create(LEASE, self._document(0))
        else:
            spec = lease.get("spec") or {}
            is_ours = spec.get("holderIdentity") == self._identity
            if spec.get("holderIdentity") and not is_ours and not self._is_expired(spec):
                self._renewed = float("-inf")
                return
            changes = int(spec.get("leaseTransitions") or 0) + (not is_ours)
            since = {"acquireTime": spec["acquireTime"]} if is_ours and spec.get("acquireTime") else {}
            lease["spec"] = self._document(changes)["spec"] | since
            await self._api.replace(LEASE, lease)
        self._renewed = started

    def _is_expired(self, spec: dict[str, Any]) -> bool:
        seen = (str(spec.get("holderIdentity")), str(spec.get("renewTime")))
        now = self._clock()
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        self._expires_at = self._seen_at + float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)
        return now > self._expires_at

    def _document(self, transitions: int) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.name,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": LEASE_SECONDS,
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }
