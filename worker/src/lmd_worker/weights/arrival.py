"""One file while it arrives: parts by several connections, in any order, and its hash, in order, as its beginning grows.

    <name>.part       the bytes so far, sparse
    <name>.journal    one JSON line saying of what, then a byte for each part that is there
    <name>            the whole file, verified

A killed fetch goes on from its journal. After a restart of the machine, written pages may be lost that the journal counts, so
parts are then trusted only where a digest will tell.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from lmd_worker.errors import FetchError
from lmd_worker.weights import headers
from lmd_worker.weights.listing import RemoteFile
from lmd_worker.weights.place import JOURNAL

PART_BYTES = 16 * 2**20
HASH_BYTES = 2**20
"""Read at once while hashing; the pages were written a moment ago and are still in memory."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class _Hash(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


class Arrival:
    """A file that is to be in `directory`. Parts may be written by several threads; whoever completes the beginning hashes on."""

    def __init__(self, file: RemoteFile, directory: Path, origin: str) -> None:
        self.file = file
        self.sha256 = ""
        self._origin = origin
        self._final = directory / file.name
        self._part = directory / f"{file.name}.part"
        self._journal = directory / f"{file.name}{JOURNAL}"
        self._count = -(-file.size // PART_BYTES)
        self._there = bytearray(self._count)
        self._hashed_parts = 0
        self._hashes: dict[str, _Hash] = {}
        self._hashing = threading.Lock()
        self._head = b""
        self._resumed = False
        self._first_byte = 0

    def open(self) -> int:
        """Take up what an earlier fetch left; return the bytes that need not be fetched again."""
        self._begin_hashes()
        head = _identity(self.file)
        known = self._journal.read_bytes() if self._journal.exists() else b""
        stored, newline, there = known.partition(b"\n")
        if newline and _is_same(stored, head, trust_pages=bool(self.file.digests)) and self._final.is_file():
            self._final.replace(self._part)  # hashed again below: it is cheap beside fetching, and then nothing is taken on trust
        if newline and _is_same(stored, head, trust_pages=bool(self.file.digests)) and self._part.is_file():
            self._there[:] = there[: self._count].ljust(self._count, b"\0")
            self._resumed = any(self._there)
        else:
            for left in (self._final, self._part, self._journal):
                left.unlink(missing_ok=True)
        self._first_byte = len(head) + 1
        self._journal.write_bytes(head + b"\n" + self._there)
        with self._part.open("ab") as part:
            part.truncate(self.file.size)
        self._hash_on()
        return sum(end - start for index, (start, end) in enumerate(self._spans()) if self._there[index])

    def missing(self) -> list[int]:
        """Return the parts that are not there yet."""
        return [index for index in range(self._count) if not self._there[index]]

    def span(self, index: int) -> tuple[int, int]:
        """Return where a part begins and ends, in bytes."""
        return index * PART_BYTES, min((index + 1) * PART_BYTES, self.file.size)

    def writer(self) -> int:
        """Return a descriptor for writing parts at their places; the caller closes it."""
        return os.open(self._part, os.O_WRONLY)

    def complete(self, index: int) -> None:
        """Note that a part is there, and hash as far as the beginning goes. Raises `FetchError` as soon as the header shows a lie."""
        self._there[index] = 1
        descriptor = os.open(self._journal, os.O_WRONLY)
        try:
            os.pwrite(descriptor, b"\1", self._first_byte + index)
        finally:
            os.close(descriptor)
        self._hash_on()

    @property
    def is_whole(self) -> bool:
        """Whether every part is there and hashed."""
        return self._hashed_parts == self._count

    def settle(self) -> bool:
        """Check the digests and give the file its name. Returns False when it must be fetched once more.

        Raises `FetchError` naming the file when fresh bytes have a wrong digest. What an earlier fetch left is not blamed on
        the source, but thrown away once.
        """
        if self._count == 0:
            self._hash_on()
        self.sha256 = self._hashes["sha256"].hexdigest()
        for digest in self.file.digests:
            found = self._hashes[digest.algorithm].hexdigest()
            if found != digest.value:
                self._throw_away()
                if self._resumed:
                    return False
                raise FetchError(
                    "DigestMismatch",
                    f"{self.file.name} of {self._origin} has the {digest.algorithm} digest {found} and must have {digest.value}; "
                    "it was not kept. Correct spec.model.verify.sha256 if that is wrong; if not, something on the way changes bytes.",
                )
        self._check_header()
        self._part.replace(self._final)
        return True

    def _throw_away(self) -> None:
        self._part.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)
        self._there = bytearray(self._count)
        self._hashed_parts, self._head = 0, b""

    def _begin_hashes(self) -> None:
        self._hashes = {"sha256": hashlib.sha256()}
        if any(digest.algorithm == "git" for digest in self.file.digests):
            self._hashes["git"] = hashlib.sha1(f"blob {self.file.size}\0".encode(), usedforsecurity=False)

    def _hash_on(self) -> None:
        """Hash every part that continues the beginning, unless another thread is at it: that one sees ours too, or we see its end."""
        while self._can_go_on() and self._hashing.acquire(blocking=False):
            try:
                while self._can_go_on():
                    self._hash_part(*self.span(self._hashed_parts))
                    self._hashed_parts += 1
            finally:
                self._hashing.release()

    def _can_go_on(self) -> bool:
        return self._hashed_parts < self._count and self._there[self._hashed_parts] == 1

    def _hash_part(self, start: int, end: int) -> None:
        buffer = memoryview(bytearray(min(HASH_BYTES, end - start)))  # one, as fresh memory costs as much as the copy into it
        with self._part.open("rb", buffering=0) as part:
            part.seek(start)
            while start < end:
                count = part.readinto(buffer[: end - start])
                if not count:
                    raise FetchError("FetchFailed", f"{self._part.name} was changed by somebody else while it was fetched.")
                for each in self._hashes.values():
                    each.update(buffer[:count])
                start += count

    def _check_header(self) -> None:
        if not self.file.is_weights:
            return
        with self._part.open("rb") as part:
            length = headers.header_length(part.read(headers.LENGTH_BYTES), self.file.size, self.file.name)
            try:
                headers.tensors(part.read(length), self.file.size, self.file.name)
            except FetchError:
                self._throw_away()
                raise

    def _spans(self) -> Iterator[tuple[int, int]]:
        return (self.span(index) for index in range(self._count))


def _identity(file: RemoteFile) -> bytes:
    """Return the line that says of what the parts are, and since which start of the machine."""
    boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
    return json.dumps({"file": asdict(file), "part_bytes": PART_BYTES, "boot": boot}, sort_keys=True).encode()


def _is_same(stored: bytes, wanted: bytes, *, trust_pages: bool) -> bool:
    try:
        old, new = json.loads(stored), json.loads(wanted)
    except ValueError:
        return False
    if not isinstance(old, dict) or (old.get("boot") != new["boot"] and not trust_pages):
        return False
    return {**old, "boot": ""} == {**new, "boot": ""}
