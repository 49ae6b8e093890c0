"""What is in the cluster, as far as we have heard: one cache per kind, filled by list and watch.

A relist is compared with what was known, so that what vanished while nobody listened is reported as deleted. Our own
writes are put in at once, so that a reconcile never acts on a state older than its last write. Objects are kept as
small records; what they are made of is decided by `lmd_operator.cluster.records`.

An answer may come after the watch's news of what happened next. So each watch says how far it has heard: what an answer tells
of no later than that, and the cache does not know, is gone by now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lmd_operator.cluster.kinds import Kind
from lmd_operator.cluster.packing import Packer
from lmd_operator.cluster.records import Record, record, version_number

ECHOES = 256
"""Own writes whose news the watch may still bring; of an older one the news are read again, and known."""
Changed = Callable[[Record, bool], None]
"""Told the record, and whether it is gone."""


class Cache:
    """Records of one kind, by namespace and name, with the names of each owner's."""

    def __init__(self, kind: Kind, changed: Changed) -> None:
        self.kind = kind
        self._changed = changed
        self._records: dict[tuple[str, str], Record] = {}
        self._names: dict[tuple[str, str], tuple[str, ...]] = {}
        self._packer = Packer()
        self._written: deque[int] = deque(maxlen=ECHOES)
        self._heard: dict[str | None, int] = {}

    def get(self, namespace: str, name: str) -> Record | None:
        """Return what is known of one object."""
        return self._records.get((namespace, name))

    def of(self, namespace: str, owner: str) -> list[Record]:
        """Return the records that belong to one of our objects, by name."""
        return [self._records[namespace, name] for name in self._names.get((namespace, owner), ())]

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def put(self, document: dict[str, Any], *, is_own: bool = False) -> Record:
        """Take in an object from a watch or from the answer to a write; older news than known changes nothing.

        Not reported are the answer to an own write, which its writer knows, and news of nothing that a record holds: each
        would cost a reconcile that finds nothing to do. What an answer tells of and is gone by now is not kept, and reported as gone.
        """
        metadata = document["metadata"]
        key = (metadata["namespace"], metadata["name"])
        old = self._records.get(key)
        # also of a predecessor of the same name; before anything is made of it, as each own write comes back by the watch
        if old is not None and old.version >= version_number(metadata.get("resourceVersion", "")):
            return old
        new = record(self.kind, document, self._packer, old)
        if is_own:
            if old is None and new.version <= self._heard_of(new.namespace):
                self._changed(new, True)
                return new
            self._written.append(new.version)
        self._store(key, new)
        if not is_own and old != new:
            self._changed(new, False)
        return new

    def hear(self, namespace: str | None, version: int) -> None:
        """Note that everything up to this version has been taken in, of one namespace or of all."""
        self._heard[namespace] = version

    def is_echo(self, version: int) -> bool:
        """Return whether news of this version tell what the answer to an own write has told; versions are unique in a cluster."""
        return version in self._written

    def remove(self, namespace: str, name: str, uid: str) -> None:
        """Forget an object that is gone; a successor of the same name stays."""
        known = self._records.get((namespace, name))
        if known is not None and known.uid == uid:
            self._drop((namespace, name))
            self._changed(known, True)

    def replace(self, namespace: str | None, documents: Iterable[dict[str, Any]], version: int) -> None:
        """Take in a whole list; what it lacks and is not newer than the list is gone."""
        seen = set()
        for document in documents:
            kept = self.put(document)
            seen.add((kept.namespace, kept.name))
        for key, known in list(self._records.items()):
            if key not in seen and namespace in (None, key[0]) and known.version <= version:
                self.remove(*key, known.uid)
        self.hear(namespace, version)

    def _heard_of(self, namespace: str) -> int:
        return max(self._heard.get(namespace, 0), self._heard.get(None, 0))

    def _store(self, key: tuple[str, str], new: Record) -> None:
        old = self._records.get(key)
        if old is not None and old.owner != new.owner:
            self._drop(key)
        if new.owner and (old is None or old.owner != new.owner):
            owner = new.namespace, new.owner
            self._names[owner] = tuple(sorted((*self._names.get(owner, ()), new.name)))
        self._records[key] = new

    def _drop(self, key: tuple[str, str]) -> None:
        old = self._records.pop(key, None)
        if old is not None and old.owner:
            owner = old.namespace, old.owner
            self._names[owner] = tuple(name for name in self._names[owner] if name != old.name)
            if not self._names[owner]:
                del self._names[owner]
