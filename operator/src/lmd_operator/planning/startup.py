"""How long a replica may take until its model is loaded, and the sum that makes it. Pure.

The limit is part of the pod template, so it comes from what does not change while a revision runs: a limit that followed a measurement
would roll the pods with every measurement. What loading really took is told beside it, in the status.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmd_operator.planning.memory import GIB

PROCESSES_SECONDS = 600
"""The JVM, the ranks' libraries, joining, cutting, the self-test and the cache: 16 s with three ranks on two cores, with a margin for
devices to be set up and for kernels to be compiled."""
SLOWEST_BYTES_PER_SECOND = 100 * 2**20
"""Of volumes that models are served from: less than the baseline of 125 MiB/s of the general-purpose disks of large clouds."""
LONGEST_SECONDS = 86400


@dataclass(frozen=True, slots=True)
class StartUp:
    """`seconds` is the longest time from container start to a loaded model, `sum` says how they came about."""

    seconds: int
    sum: str


UNKNOWN = StartUp(1800, "1800 s, as the size of the weights is not known before they are loaded")


def start_up(asked: int | None, weight_bytes: int | None) -> StartUp:
    """Return the limit: what was asked for, or else what reading so many bytes from a slow volume takes.

    Every weight is read once a pod, whatever the ranks: they map the same files.
    """
    if asked is not None:
        return StartUp(asked, f"{asked} s, as asked for")
    if weight_bytes is None:
        return UNKNOWN
    reading = -(-weight_bytes // SLOWEST_BYTES_PER_SECOND)
    seconds = min(PROCESSES_SECONDS + reading, LONGEST_SECONDS)
    size, speed = f"{weight_bytes / GIB:.1f} GiB", f"{SLOWEST_BYTES_PER_SECOND // 2**20} MiB/s"
    most = f", at most {LONGEST_SECONDS} s" if seconds < PROCESSES_SECONDS + reading else ""
    return StartUp(seconds, f"{PROCESSES_SECONDS} s for processes and the self-test + {reading} s to read {size} at {speed}{most}")
