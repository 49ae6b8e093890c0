"""The small files in the run directory by which ranks, probes and drain know of each other.

They outlive a container, as the directory is a volume of the pod: `clear` undoes what a predecessor left.
"""

from __future__ import annotations

from pathlib import Path

IN_FLIGHT = "in-flight"
"""Holds the number of requests rank 0 is answering; absent means none."""
DRAINING = "draining"
"""Its presence makes the readiness probe fail."""
FRONT_DOOR_SOCKET = "front-door.sock"
"""Where HAProxy takes commands, in a pod; haproxy.cfg names it."""
RANK_REPORT = "ranks.json"
"""What the ranks of the running container said of themselves; stale after a restart."""


def clear(run_directory: Path) -> None:
    """Create the directory and remove what an earlier container said there."""
    run_directory.mkdir(parents=True, exist_ok=True)
    for name in (IN_FLIGHT, DRAINING, RANK_REPORT):
        (run_directory / name).unlink(missing_ok=True)


def write_in_flight(run_directory: Path, requests: int) -> None:
    """Replace the count at once, so that a reader sees the old or the new number."""
    run_directory.mkdir(parents=True, exist_ok=True)
    temporary = run_directory / f"{IN_FLIGHT}.new"
    temporary.write_text(f"{requests}\n")
    temporary.replace(run_directory / IN_FLIGHT)


def read_in_flight(run_directory: Path) -> int:
    """Return the last count written, 0 when there is none or it cannot be read."""
    try:
        return int((run_directory / IN_FLIGHT).read_text())
    except (OSError, ValueError):
        return 0


def set_draining(run_directory: Path) -> None:
    """Make the readiness probe fail from now on."""
    run_directory.mkdir(parents=True, exist_ok=True)
    (run_directory / DRAINING).touch()


def is_draining(run_directory: Path) -> bool:
    """Tell whether a drain has begun."""
    return (run_directory / DRAINING).exists()
