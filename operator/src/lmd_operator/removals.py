"""What an object has put into a shared claim, given up when the object is gone: by a Job that was made with it and waits suspended.

The Job belongs to nobody, so it outlives the object; whether the object is gone is asked of the API server. Nothing has to be
remembered, nothing holds the object or its namespace back, and an operator that was away finds the Job when it is back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lmd_operator.cluster.api import Api
from lmd_operator.cluster.cache import Cache
from lmd_operator.cluster.door import Child, Door, carries_our_marks
from lmd_operator.cluster.kinds import DEPLOYMENT, JOB, LARGE_MODEL_DEPLOYMENT, POD, Kind
from lmd_operator.cluster.records import Record
from lmd_operator.names import LABEL_TASK, TASK_REMOVE
from lmd_operator.observed import JobState

Key = tuple[str, str]


class Removals:
    """The waiting Jobs of all objects."""

    def __init__(self, api: Api, caches: Mapping[Kind, Cache], door: Door) -> None:
        self._api = api
        self._caches = caches
        self._door = door

    async def begin(self, key: Key) -> None:
        """Let the Jobs of an object run that is gone, once no pod of it reads the files any more.

        Asked for whenever something of an unknown object changes, so it need not wait here. An object may be unknown because it
        was not heard of yet.
        """
        waiting = [record for record in self._all(key) if _state(record).is_suspended]
        if waiting and not self._is_anything_left(key) and await self._api.get(LARGE_MODEL_DEPLOYMENT, *key) is None:
            for record in waiting:
                await self._door.let_go(record)

    async def clear(self, key: Key) -> None:
        """Delete what has run for a predecessor of the same name: a Job runs only once."""
        for record in self._all(key):
            if _state(record).is_finished:
                await self._door.delete(record)

    async def prune(self, key: Key, children: Sequence[Child]) -> None:
        """Delete what an object that lives does not want any more.

        Where files are removed with the object, the Jobs of models it had before stay: they are as much its own.
        """
        wanted = {child.name for child in children if child.kind is JOB}
        kept = [record for record in self._all(key) if record.name in wanted]
        for record in self._all(key):
            if record.name not in wanted and (not kept or any(record.revision == other.revision for other in kept)):
                await self._door.delete(record)

    def _all(self, key: Key) -> Iterator[Record]:
        for record in self._caches[JOB].of(*key):
            if not record.controller and not record.is_going and _removes(record, key[1]):
                yield record

    def _is_anything_left(self, key: Key) -> bool:
        """Return whether the garbage collector has not come to the end yet."""
        owned = any(record.owner_uid for record in self._caches[JOB].of(*key))
        return owned or bool(self._caches[DEPLOYMENT].of(*key) or self._caches[POD].of(*key))


def _removes(record: Record, owner: str) -> bool:
    labels = record.owned_fields().get("metadata", {}).get("labels", {})
    return carries_our_marks(record, owner) and labels.get(LABEL_TASK) == TASK_REMOVE


def _state(record: Record) -> JobState:
    return record.state if isinstance(record.state, JobState) else JobState(False, False, "")
