"""The process that cleans up after a local run, however it ended.

It waits until its standard input closes, which happens when the run ends by any cause, SIGKILL included. Then it ends
every process that carries the run's mark in its environment and removes the run's folder.
Ranks live in sessions of their own, so neither a process group nor a parent id would find them all.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import psutil

MARK = "LMD_LOCAL_RUN"
"""Environment variable with the run's folder, inherited by every process of the run."""
GRACE_SECONDS = 8.0
"""What processes may take to end by themselves before they are killed."""
POLL_SECONDS = 0.05


class Janitor:
    """A running janitor for one folder; leaving the context cleans up and waits until it is done."""

    def __init__(self, folder: Path, grace_seconds: float = GRACE_SECONDS) -> None:
        self._arguments = [str(folder), str(grace_seconds)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Janitor:
        command = [sys.executable, "-m", "lmd_operator.local.janitor", *self._arguments]
        environment = {key: value for key, value in os.environ.items() if key != MARK}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env=environment)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()


def marked(folder: str) -> list[psutil.Process]:
    """Return the processes of one run, as far as this user may see them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == folder:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or another user's
    return found


def clean(folder: str, grace_seconds: float) -> None:
    """End every process of the run and remove its folder; what is gone already is fine."""
    remaining = _signal_all(marked(folder), signal.SIGTERM, grace_seconds)
    _signal_all([*remaining, *marked(folder)], signal.SIGKILL, grace_seconds)
    shutil.rmtree(folder, ignore_errors=True)


def _signal_all(processes: list[psutil.Process], number: signal.Signals, grace_seconds: float) -> list[psutil.Process]:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.Error:
            continue
    end = time.monotonic() + grace_seconds
    while (processes := [process for process in processes if _lives(process)]) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    return processes


def _lives(process: psutil.Process) -> bool:
    """Say whether a process still does anything; one that nobody waits for (a zombie) does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def main() -> None:
    """Wait for the run to end, then clean up. Ctrl-C reaches the run, not us: it is another session."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.buffer.read()
    clean(sys.argv[1], float(sys.argv[2]))


if __name__ == "__main__":
    main()
