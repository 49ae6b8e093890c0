from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Callable

import pytest

from lmd_worker import cores

SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
OWN_SLICES = (6, 12)
"""The first Linux that keeps them."""


def attributes() -> cores.Attributes:
    found = cores.Attributes()
    size = ctypes.sizeof(found)
    assert ctypes.CDLL(None).syscall(SCHED_GETATTR[platform.machine()], 0, ctypes.byref(found), size, 0) == 0
    return found


def noted(begin: Callable[[], None], note: Callable[[], object]) -> list[object]:
    """Return what is noted in a thread that has begun so, and in one that it makes."""
    notes: list[object] = []

    def run() -> None:
        begin()
        notes.append(note())
        later = threading.Thread(target=lambda: notes.append(note()))
        later.start()
        later.join()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return notes


def test_a_thread_that_waits_for_peers_takes_no_core_from_one_that_runs() -> None:
    """Threads of gloo that were woken by a message took the core of its sender, and polled for its lock until the time slice was over."""
    assert noted(cores.wake_without_preempting, lambda: os.sched_getscheduler(0)) == [os.SCHED_BATCH, os.SCHED_BATCH]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_thread_that_computes_has_long_slices() -> None:
    """Each of the frontend's threads waited for the end of a slice of the rank's to pass a token on."""
    before = attributes().runtime
    kernel = tuple(int(part) for part in platform.release().split(".")[:2])
    wanted = cores.SLICE_NANOSECONDS if kernel >= OWN_SLICES else before
    assert noted(cores.let_brief_threads_in, lambda: (attributes().runtime, attributes().policy)) == 2 * [(wanted, os.SCHED_OTHER)]
    assert attributes().runtime == before, "other threads keep theirs"


def test_where_the_kernel_has_no_such_call_all_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    before = attributes().runtime
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    cores.let_brief_threads_in()
    monkeypatch.undo()
    assert attributes().runtime == before
