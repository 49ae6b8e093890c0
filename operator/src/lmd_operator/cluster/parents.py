"""Our own objects, as the watch told them; kept compressed, parsed when they are reconciled."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lmd_operator.api.status import Status
from lmd_operator.cluster.records import version_number

Key = tuple[str, str]
_KEPT_METADATA = ("name", "namespace", "uid", "generation")


@dataclass(frozen=True, slots=True)
class Parent:
    """One LargeModelDeployment. `status` is what it has, an empty one where it has none or nonsense."""

    namespace: str
    name: str
    uid: str
    version: int
    generation: int
    is_going: bool
    content: bytes
    status: Status

    def document(self) -> dict[str, Any]:
        """Return the object as far as we read it."""
        document: dict[str, Any] = json.loads(zlib.decompress(self.content))
        return document


class Parents:
    """The objects that exist, by namespace and name."""

    def __init__(self) -> None:
        self._parents: dict[Key, Parent] = {}

    def get(self, key: Key) -> Parent | None:
        """Return an object, or None when there is none."""
        return self._parents.get(key)

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._parents))

    def __len__(self) -> int:
        return len(self._parents)

    def put(self, document: dict[str, Any]) -> bool:
        """Take in an object; return whether anything a reconcile looks at has changed. Older news than known changes nothing."""
        metadata = document["metadata"]
        key = (metadata["namespace"], metadata["name"])
        old = self._parents.get(key)
        if old is not None and old.version >= version_number(metadata["resourceVersion"]):  # also of a predecessor of the same name
            return False
        new = _parent(document)
        self._parents[key] = new
        return old is None or (old.uid, old.generation, old.is_going, old.status) != (new.uid, new.generation, new.is_going, new.status)

    def remove(self, namespace: str, name: str, uid: str) -> bool:
        """Forget an object that is gone; a successor of the same name stays. Return whether it was known."""
        known = self._parents.get((namespace, name))
        if known is None or known.uid != uid:
            return False
        del self._parents[(namespace, name)]
        return True


def _parent(document: dict[str, Any]) -> Parent:
    metadata = document["metadata"]
    kept = {key: metadata[key] for key in _KEPT_METADATA if key in metadata}
    content = {"apiVersion": document["apiVersion"], "kind": document["kind"], "metadata": kept, "spec": document.get("spec", {})}
    return Parent(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        version=version_number(metadata["resourceVersion"]),
        generation=metadata.get("generation", 0),
        is_going=bool(metadata.get("deletionTimestamp")),
        content=zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 6),
        status=_status(document.get("status")),
    )


def _status(content: object) -> Status:
    """Read a status; what somebody else made of it is as good as none."""
    try:
        return Status.model_validate(content or {})
    except ValidationError:
        return Status()
