"""The model directory: there whole and verified, or not there. Every step of the finish can be the last one before a kill.

<parent>/.<name>.lock       held by the one fetch that writes; released by the kernel, however the holder ends
<parent>/.<name>.partial    what is being fetched
<parent>/.<name>.old        a former revision, for the moment in which the new one takes its name
<parent>/.<name>.users      an empty file for each object that uses a shared model
<parent>/<name>             the model, with the marker of a finished fetch in it
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKER = ".lmd-weights.json"
JOURNAL = ".journal"
"""Ending of the notes on which parts of a file are there; see `arrival`."""
Step = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Marker:
    """What a finished fetch leaves: of what it is, at which revision, and size and SHA-256 of every file."""

    source: Mapping[str, Any]
    revision: str
    files: Mapping[str, tuple[int, str]]


class Place:
    """One model directory and the names around it."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.partial = target.with_name(f".{target.name}.partial")
        self._old = target.with_name(f".{target.name}.old")
        self._lock = target.with_name(f".{target.name}.lock")
        self._users = target.with_name(f".{target.name}.users")

    @contextmanager
    def locked(self, waiting: Callable[[], object]) -> Iterator[None]:
        """Hold the lock of the only writer; `waiting` is called once when another one has it."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def marker(self) -> Marker | None:
        """Return the marker of the finished fetch, or None when the directory is not there or not as it was left."""
        try:
            document = json.loads((self.target / MARKER).read_text())
            marker = Marker(
                dict(document["source"]),
                str(document["revision"]),
                {name: (size, digest) for name, (size, digest) in document["files"].items()},
            )
            is_whole = all((self.target / name).stat().st_size == size for name, (size, _) in marker.files.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return marker if is_whole else None

    def clean(self) -> None:
        """Remove what a kill at the end of the finish left; a former revision has the size of the model."""
        shutil.rmtree(self._old, ignore_errors=True)
        self._forget_journals()

    def note_user(self, user: str) -> None:
        """Write down who uses the model; by the holder of the lock."""
        self._users.mkdir(exist_ok=True)
        (self._users / user).touch()

    def forget_user(self, user: str) -> int:
        """Strike out a user and return how many are left; by the holder of the lock."""
        (self._users / user).unlink(missing_ok=True)
        return len(list(self._users.iterdir())) if self._users.is_dir() else 0

    def remove(self) -> Iterator[Step]:
        """Yield the steps that remove everything but the lock, in order; a kill between two of them leaves no model that looks whole.

        The lock stays, as whoever waits for it has this very file open.
        """
        yield lambda: _remove(self._old)
        if self.target.exists():
            yield lambda: self.target.rename(self._old)
        for path in (self._old, self.partial, self._users):
            yield lambda path=path: _remove(path)  # type: ignore[misc]

    def finish(self, marker: Marker) -> Iterator[Step]:
        """Yield the steps that give the directory its name, in order; none is yielded before the one before it was carried out.

        A kill between two of them leaves no directory of that name, or a whole one. The journals go last, so that until
        then nothing has to be fetched again.
        """
        yield lambda: self._remove_strangers(marker)
        yield lambda: _write(self.partial / MARKER, marker)
        for name in (*marker.files, MARKER):
            yield lambda name=name: _sync(self.partial / name)  # type: ignore[misc]
        yield lambda: _sync(self.partial)
        if self.target.exists():
            yield lambda: self.target.rename(self._old)
        yield lambda: self.partial.rename(self.target)
        yield lambda: _sync(self.target.parent)
        yield self._forget_journals
        yield lambda: shutil.rmtree(self._old, ignore_errors=True)

    def _forget_journals(self) -> None:
        for path in self.target.glob(f"*{JOURNAL}"):
            path.unlink()

    def _remove_strangers(self, marker: Marker) -> None:
        """Remove what an earlier listing had and this one has not."""
        kept = {*marker.files, *(f"{name}{JOURNAL}" for name in marker.files)}
        for path in self.partial.iterdir():
            if path.name not in kept:
                path.unlink()


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def _write(path: Path, marker: Marker) -> None:
    document = {
        "source": dict(marker.source),
        "revision": marker.revision,
        "files": {name: list(told) for name, told in marker.files.items()},
    }
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
