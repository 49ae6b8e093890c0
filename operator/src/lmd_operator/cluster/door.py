"""The one door through which children are written, skipped where nothing would change.

A child is applied when it is missing, when it is not what we last sent, or when the live object no longer has what we
sent. A name that belongs to somebody else is never touched. The answer to a write goes into the cache at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmd_operator.cluster.api import Api
from lmd_operator.cluster.cache import Cache
from lmd_operator.cluster.errors import ApiError
from lmd_operator.cluster.kinds import BY_NAME, Kind
from lmd_operator.cluster.matching import covers
from lmd_operator.cluster.records import Record, owned_fields
from lmd_operator.names import ANNOTATION_APPLIED

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

    async def apply(self, document: Document, owner_uid: str) -> Outcome:
        """Make one child what the document says. Raises `ForeignObjectError` instead of taking what is not ours."""
        kind = BY_NAME[document["kind"]]
        namespace, name = document["metadata"]["namespace"], document["metadata"]["name"]
        cache = self._caches[kind]
        known = cache.get(namespace, name)
        if known is None:
            await self._require_ours(kind, namespace, name, owner_uid)
        elif known.owner_uid != owner_uid:
            raise ForeignObjectError(kind, name, known.owner if known.owner_uid else "")
        elif known.is_going:
            raise ApiError(f"applying {kind.name} {name}", 409, f"{kind.name} {name} is being deleted; it will be made anew", "Terminating")
        document = _signed(document)
        key = (kind.name, namespace, name)
        if known is not None and self._is_settled(key, document, known):
            return "unchanged"
        stored = cache.put(await self._api.apply(kind, document))
        self._settled[key] = _Settled(_signature(document), stored.digest)
        return "created" if known is None else "changed"

    async def delete(self, record: Record) -> None:
        """Delete exactly the child that was seen."""
        await self._api.delete(record.kind, record.namespace, record.name, uid=record.uid, resource_version=str(record.version))
        self._caches[record.kind].remove(record.namespace, record.name, record.uid)
        self._settled.pop((record.kind.name, record.namespace, record.name), None)

    def forget(self, namespace: str, owner: str) -> None:
        """Forget what is known of the children of an object that is gone."""
        for kind, cache in self._caches.items():
            for record in cache.of(namespace, owner):
                self._settled.pop((kind.name, namespace, record.name), None)

    def _is_settled(self, key: tuple[str, str, str], document: Document, known: Record) -> bool:
        """Compare deeply only where the shortcut fails: after a restart, or after somebody's change."""
        now = _Settled(_signature(document), known.digest)
        if self._settled.get(key) == now:
            return True
        if not covers(known.owned_fields(), owned_fields(document)):
            return False
        self._settled[key] = now
        return True

    async def _require_ours(self, kind: Kind, namespace: str, name: str, owner_uid: str) -> None:
        """Look whether a name that is not in the cache is really free; our label may have been taken off it."""
        live = await self._api.get(kind, namespace, name)
        if live is None:
            return
        controller = next((entry for entry in live["metadata"].get("ownerReferences") or [] if entry.get("controller")), None)
        if controller is None or controller.get("uid") != owner_uid:
            raise ForeignObjectError(kind, name, f"{controller['kind']} {controller['name']}" if controller else "")


def _signed(document: Document) -> Document:
    """Return the document with its own hash as an annotation: a field that is no longer sent changes it too."""
    digest = hashlib.blake2b(json.dumps(document, sort_keys=True).encode(), digest_size=12).hexdigest()
    metadata = document["metadata"]
    annotations = {**metadata.get("annotations", {}), ANNOTATION_APPLIED: digest}
    return {**document, "metadata": {**metadata, "annotations": annotations}}


def _signature(document: Document) -> str:
    return str(document["metadata"]["annotations"][ANNOTATION_APPLIED])
