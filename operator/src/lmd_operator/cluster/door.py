"""The one door through which children are written, skipped where nothing would change.

A child is applied when it is missing, when it is not what we last sent, or when the live object no longer has what we
sent. A name that belongs to somebody else is never touched. The answer to a write goes into the cache at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import from_json, to_json

from lmd_operator.cluster.api import Api
from lmd_operator.cluster.cache import Cache
from lmd_operator.cluster.errors import ApiError
from lmd_operator.cluster.kinds import BY_NAME, JOB, LARGE_MODEL_DEPLOYMENT, Kind
from lmd_operator.cluster.matching import covers
from lmd_operator.cluster.packing import Packer
from lmd_operator.cluster.records import Record, owned_fields, version_number
from lmd_operator.cluster.records import record as make_record
from lmd_operator.names import ANNOTATION_APPLIED, LABEL_DEPLOYMENT

Document = dict[str, Any]
Outcome = Literal["created", "changed", "unchanged"]


class ForeignObjectError(ApiError):
    """An object of a name we need belongs to somebody else."""

    def __init__(self, kind: Kind, name: str, owner: str) -> None:
        self.kind = kind
        self.name = name
        owned = f"belongs to {owner}" if owner else "exists and was not made by this operator"
        message = f"{kind.name} {name} {owned}: delete or rename it, or give this object another name"
        super().__init__(f"applying {kind.name} {name}", 409, message, "Foreign")


@dataclass(frozen=True, slots=True)
class Child:
    """A child as it is sent, signed. `owner` is the name of the object it belongs to, `content` the JSON text, metadata first.

    The text is not compressed: that took a third of the time of making it, and it is kept for seconds.
    """

    kind: Kind
    namespace: str
    name: str
    owner: str
    signature: str
    content: bytes

    @classmethod
    def of(cls, document: Document) -> Child:
        """Sign a document with its own hash as an annotation: a field that is no longer sent changes it too."""
        signature = hashlib.blake2b(to_json(document), digest_size=12).hexdigest()
        metadata = document["metadata"]
        annotations = {**metadata.get("annotations", {}), ANNOTATION_APPLIED: signature}
        content = to_json({"metadata": {**metadata, "annotations": annotations}} | {k: v for k, v in document.items() if k != "metadata"})
        return cls(
            kind=BY_NAME[document["kind"]],
            namespace=metadata["namespace"],
            name=metadata["name"],
            owner=metadata["labels"][LABEL_DEPLOYMENT],
            signature=signature,
            content=content,
        )


@dataclass(frozen=True, slots=True)
class _Settled:
    """What we sent, and what the live object looked like when it had settled."""

    sent: str
    live: bytes


class Door:
    """Writes children of our objects; remembers per child what it settled to, so that nothing is written twice."""

    def __init__(self, api: Api, caches: Mapping[Kind, Cache]) -> None:
        self._api = api
        self._caches = caches
        self._settled: dict[tuple[str, str, str], _Settled] = {}

    async def apply(self, child: Child, owner_uid: str) -> Outcome:
        """Make one child what it should be. Raises `ForeignObjectError` instead of taking what is not ours."""
        cache = self._caches[child.kind]
        known = cache.get(child.namespace, child.name)
        key = (child.kind.name, child.namespace, child.name)
        if known is None:
            answer = await self._make(child, owner_uid)
        else:
            _require_ours(known, child.owner, owner_uid)
            if self._is_settled(key, child, known):
                return "unchanged"
            answer = await self._api.apply_content(child.kind, child.namespace, child.name, child.content)
        cache.put(answer, is_own=True)
        stored = cache.get(child.namespace, child.name)
        if stored is not None and stored.version == version_number(answer["metadata"]["resourceVersion"]):
            self._settled[key] = _Settled(child.signature, stored.digest)
        else:  # the watch was faster and told of somebody's later change, which is compared deeply when it is our turn again
            self._settled.pop(key, None)
        return "created" if known is None else "changed"

    async def delete(self, record: Record) -> None:
        """Delete exactly the child that was seen."""
        await self._api.delete(record.kind, record.namespace, record.name, uid=record.uid, resource_version=str(record.version))
        self._caches[record.kind].remove(record.namespace, record.name, record.uid)
        self._settled.pop((record.kind.name, record.namespace, record.name), None)

    async def let_go(self, record: Record) -> None:
        """Let a suspended Job run, exactly the one that was seen."""
        change = {"metadata": {"uid": record.uid}, "spec": {"suspend": False}}
        self._caches[JOB].put(await self._api.merge(JOB, record.namespace, record.name, change), is_own=True)
        self._settled.pop((record.kind.name, record.namespace, record.name), None)

    def forget(self, namespace: str, owner: str) -> None:
        """Forget what is known of the children of an object that is gone."""
        for kind, cache in self._caches.items():
            for record in cache.of(namespace, owner):
                self._settled.pop((kind.name, namespace, record.name), None)

    def _is_settled(self, key: tuple[str, str, str], child: Child, known: Record) -> bool:
        """Compare deeply only where the shortcut fails: after a restart, or after somebody's change."""
        now = _Settled(child.signature, known.digest)
        if self._settled.get(key) == now:
            return True
        if not covers(known.owned_fields(), owned_fields(from_json(child.content))):
            return False
        self._settled[key] = now
        return True

    async def _make(self, child: Child, owner_uid: str) -> Document:
        """Make a child that is not in the cache; where its name is taken all the same, look first who has it.

        It may be ours: its label may have been taken off, or the watch may be late.
        """
        try:
            return await self._api.apply_new(child.kind, child.namespace, child.name, child.content)
        except ApiError as error:
            if error.status != 409:
                raise
            found, _ = await self._api.list(child.kind, child.namespace, name=child.name)
            if not found:
                raise
        _require_ours(make_record(child.kind, found[0], Packer()), child.owner, owner_uid)
        return await self._api.apply_content(child.kind, child.namespace, child.name, child.content)


def _require_ours(live: Record, owner: str, owner_uid: str) -> None:
    """Raise unless the live object may be written: it is ours, or it was and has lost its owner.

    What a deleted object of the same name has left is in nobody's way for long: the garbage collector takes it.
    """
    doing, what = f"applying {live.kind.name} {live.name}", f"{live.kind.name} {live.name}"
    if live.owner_uid != owner_uid and (live.controller or not carries_our_marks(live, owner)):
        if live.controller == f"{LARGE_MODEL_DEPLOYMENT.name} {owner}":
            raise ApiError(doing, 409, f"{what} is left of a deleted object of the same name; it will be made anew", "Terminating")
        raise ForeignObjectError(live.kind, live.name, live.controller)
    if live.is_going:
        raise ApiError(doing, 409, f"{what} is being deleted; it will be made anew", "Terminating")


def carries_our_marks(live: Record, owner: str) -> bool:
    """Return whether an object without a controller has our label and our annotation, which nobody else writes."""
    metadata = live.owned_fields().get("metadata", {})
    label = metadata.get("labels", {}).get(LABEL_DEPLOYMENT)
    return label == owner and ANNOTATION_APPLIED in metadata.get("annotations", {})
