"""The one sentence a container leaves behind: why it ended, in the file Kubernetes shows as its termination message."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from lmd_worker.errors import WorkerError

LIMIT_BYTES = 4096
"""Kubernetes cuts the message here; a longer file would lose its beginning."""


def of(rank: int, error: WorkerError) -> str:
    """Return why a rank ends: the reason for the operator, where there is one, then who, then the sentence."""
    sentence = str(error)
    told = sentence if sentence.startswith("Rank ") else f"Rank {rank}: {sentence}"
    return f"{error.reason}: {told}" if error.reason else told


def write(path: Path | None, sentence: str) -> bool:
    """Write `sentence` unless something is written already; tell whether it was.

    The first cause wins: what other ranks say afterwards are its consequences. Ranks may call this at the same time.
    A file that cannot be written is passed over, as the caller is about to end and has logged the sentence too.
    """
    if path is None:
        return False
    line = " ".join(sentence.split()).encode()[: LIMIT_BYTES - 1].decode(errors="ignore")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_size:
            return False
        os.write(descriptor, f"{line}\n".encode())
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def clear(path: Path | None) -> None:
    """Forget what an earlier run wrote; the file stays, as it may be a mount."""
    if path is not None and path.exists():
        path.write_bytes(b"")
