"""The small files in the run directory by which ranks, probes and drain know of each other.

They outlive a container, as the directory is a volume of the pod: `clear` undoes what a predecessor left.
"""

from __future__ import annotations

import time
from pathlib import Path

IN_FLIGHT = "in-flight"
"""Holds the number of requests rank 0 is answering; absent means none."""
BEGAN = "began"
"""Is as old as the running container."""
FRONTEND = "frontend.pid"
"""The process that has become the frontend."""
DRAINING = "draining"
"""Its presence makes the readiness probe fail."""
FRONT_DOOR_SOCKET = "front-door.sock"
"""Where HAProxy takes commands, in a pod; haproxy.cfg names it."""
RANK_REPORT = "ranks.json"
"""What the ranks of the running container said of themselves; stale after a restart."""


def clear(run_directory: Path) -> None:
    """Create the directory, remove what an earlier container said there, and note that another one has begun."""
    run_directory.mkdir(parents=True, exist_ok=True)
    for name in (IN_FLIGHT, DRAINING, FRONTEND, RANK_REPORT):
        (run_directory / name).unlink(missing_ok=True)
    (run_directory / BEGAN).touch()


def age_seconds(run_directory: Path) -> float:
    """Return how long the running container runs, 0 when nobody has noted it."""
    try:
        return max(time.time() - (run_directory / BEGAN).stat().st_mtime, 0.0)
    except OSError:
        return 0.0


def write_frontend(run_directory: Path, pid: int) -> None:
    """Note which process becomes the frontend."""
    (run_directory / FRONTEND).write_text(f"{pid}\n")


def read_frontend(run_directory: Path) -> int | None:
    """Return the process noted, None when there is none or it cannot be read."""
    try:
        return int((run_directory / FRONTEND).read_text())
    except (OSError, ValueError):
        return None


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
