"""Processes that outlive who started them, found again by id and start time, and by a mark that they all carry."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from lmd_plane.client import eventually
from lmd_plane.node import traces

MARK = "LMD_PLANE"
"""Environment variable with the plane's folder, inherited by every process of the plane."""
NODE = "node"
"""Folder of a real node in that of its plane."""
END_SECONDS = 20.0
"""What the kernel may take to end a killed process on a busy machine."""
_POLL_SECONDS = 0.02
_STANDS = {"T", "t", "Z", "X"}
"""States of a thread that is stopped or has ended."""
_SAME_START_SECONDS = 0.5


@dataclass(frozen=True)
class Identity:
    """One process: ids are used again, start times are not."""

    pid: int
    started: float

    def process(self) -> psutil.Process | None:
        """Return the process while it runs; one that ended and was not waited for is none."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < _SAME_START_SECONDS
            return process if same and _runs(process) else None
        except psutil.NoSuchProcess:
            return None


def start(command: list[str], *, log: Path, folder: Path) -> Identity:
    """Start a process in a session of its own that speaks into a log and carries the folder's mark."""
    spoken = (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    silence = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    environment = os.environ | {MARK: str(folder)}
    pid = os.posix_spawn(command[0], command, environment, file_actions=[silence, spoken, (os.POSIX_SPAWN_DUP2, 1, 2)], setsid=True)
    return Identity(pid, psutil.Process(pid).create_time())


def pause(process: psutil.Process) -> None:
    """Stop a process where it stands, and return once none of its threads does anything.

    The signal only asks for it: on a busy machine the others go on, and answer, until the thread that takes it has its turn.
    """
    process.suspend()
    eventually(lambda: _threads(process) <= _STANDS, f"stop of process {process.pid}", seconds=END_SECONDS)


def _threads(process: psutil.Process) -> set[str]:
    """Return in which states the threads of a process are, as letters of proc(5)."""
    found = set()
    for path in Path(f"/proc/{process.pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # the thread ended meanwhile
            found.add(path.read_text().rpartition(")")[2].split()[0])
    return found


def end(processes: Iterable[psutil.Process]) -> None:
    """Kill processes and wait until they are gone; nothing they hold is worth a slower way."""
    killed = list(processes)
    for process in killed:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    deadline = time.monotonic() + END_SECONDS
    for process in killed:
        while _runs(process) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(timeout=0)  # reaps it if it is a child of ours


def _runs(process: psutil.Process) -> bool:
    """Whether it does anything still: what only waits to be reaped, perhaps by a slow init, does not.

    A process whose first thread is a zombie runs until its other threads have ended; its sockets are open until then.
    """
    try:
        return process.is_running() and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    except psutil.NoSuchProcess:
        return False


def marked(folder: Path) -> list[psutil.Process]:
    """Return the processes of one plane, as far as this user may see them.

    What runs in a container has an environment of its own, and is a descendant of a process of ours.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == str(folder):
                found |= {each.pid: each for each in (process, *process.children(recursive=True))}
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or another user's
    return list(found.values())


def sweep(folder: Path) -> None:
    """End every process of a plane, also one that is being started just now, and remove its folder."""
    while remaining := marked(folder):
        end(remaining)
    if (folder / NODE).exists():
        traces.undo(folder / NODE)
    shutil.rmtree(folder, ignore_errors=True)
