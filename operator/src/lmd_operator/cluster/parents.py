"""Our own objects, as the watch told them; kept packed, parsed when they are reconciled.

They are read from answers to our own requests too, and such an answer may be the first to tell of somebody's change: the
watch's own news of it are older then, and ignored. So it is here that a change is noticed, whoever brought it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from sys import intern
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from lmd_operator.api.status import Status
from lmd_operator.cluster.packing import Packed, Packer
from lmd_operator.cluster.records import version_number

Key = tuple[str, str]
_KEPT_METADATA = ("name", "namespace", "uid", "generation")


@dataclass(frozen=True, slots=True)
class Parent:
    """One LargeModelDeployment; `content` and `told` are what we read of it and its status, as packed JSON."""

    namespace: str
    name: str
    uid: str
    version: int
    generation: int
    is_going: bool
    content: Packed
    told: Packed

    @property
    def status(self) -> Status:
        """What it has, an empty one where it has none or nonsense."""
        return _status(self.told)

    def document(self) -> dict[str, Any]:
        """Return the object as far as we read it."""
        document: dict[str, Any] = from_json(self.content.text())
        return document


class Parents:
    """The objects that exist, by namespace and name. `changed` is told the key of each that needs a reconcile."""

    def __init__(self, changed: Callable[[Key], None]) -> None:
        self._changed = changed
        self._parents: dict[Key, Parent] = {}
        self._specs, self._statuses = Packer(), Packer()

    def get(self, key: Key) -> Parent | None:
        """Return an object, or None when there is none."""
        return self._parents.get(key)

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._parents))

    def __len__(self) -> int:
        return len(self._parents)

    def put(self, document: dict[str, Any], *, is_own: bool = False) -> None:
        """Take in an object; older news than known changes nothing.

        What has changed is reported, but for the status in the answer to an own write of it, which its writer knows.
        """
        metadata = document["metadata"]
        key = (metadata["namespace"], metadata["name"])
        old = self._parents.get(key)
        if old is not None and old.version >= version_number(metadata["resourceVersion"]):  # also of a predecessor of the same name
            return
        new = self._parent(document, old)
        self._parents[key] = new
        if old is None or _identity(old) != _identity(new) or (not is_own and old.told != new.told):
            self._changed(key)

    def remove(self, namespace: str, name: str, uid: str) -> None:
        """Forget an object that is gone, and report it; a successor of the same name stays."""
        known = self._parents.get((namespace, name))
        if known is not None and known.uid == uid:
            del self._parents[(namespace, name)]
            self._changed((namespace, name))

    def _parent(self, document: dict[str, Any], known: Parent | None) -> Parent:
        metadata = document["metadata"]
        return Parent(
            namespace=intern(metadata["namespace"]),
            name=intern(metadata["name"]),
            uid=intern(metadata["uid"]),
            version=version_number(metadata["resourceVersion"]),
            generation=metadata.get("generation", 0),
            is_going=bool(metadata.get("deletionTimestamp")),
            content=self._content(document, known),
            told=self._told(document, known),
        )

    def _content(self, document: dict[str, Any], known: Parent | None) -> Packed:
        """Return the spec, packed; what `known` holds of the same generation is not packed again."""
        metadata = document["metadata"]
        if known is not None and (known.uid, known.generation) == (metadata["uid"], metadata.get("generation", 0)):
            return known.content
        kept = {key: metadata[key] for key in _KEPT_METADATA if key in metadata}
        content = {"apiVersion": document["apiVersion"], "kind": document["kind"], "metadata": kept, "spec": document.get("spec", {})}
        return self._specs.pack(to_json(content))

    def _told(self, document: dict[str, Any], known: Parent | None) -> Packed:
        """Return the status, packed; the same text is the same object as before."""
        text = to_json(document.get("status") or {})
        return known.told if known is not None and known.told.text() == text else self._statuses.pack(text)


def _identity(parent: Parent) -> tuple[str, int, bool]:
    return parent.uid, parent.generation, parent.is_going


@lru_cache(maxsize=64)
def _status(told: Packed) -> Status:
    """Read a status; what somebody else made of it is as good as none. Read, it takes ten times the memory."""
    try:
        return Status.model_validate(from_json(told.text()))
    except ValidationError:
        return Status()
