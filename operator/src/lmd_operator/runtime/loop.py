"""The event loops of the operator's process, and its garbage collector.

A third of the operator's CPU were asyncio's own transports and TLS, and collections of a heap that hardly holds cycles. With
uvloop's transports an object cost 8 % less CPU, with fewer collections 12 % less again, beside a busy control plane
(tests/bench/operator_bench.py --objects 150, two cores, uvloop 0.23, Python 3.11).
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import uvloop

YOUNG_OBJECTS = 50_000
"""Containers made and not freed between two collections of the youngest; Python's own 700 are two API answers."""
OLDER_EVERY = 20


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run to the end in a new loop of this thread, as `asyncio.run` does."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def collect_seldom() -> None:
    """Leave what was imported out of every collection from now on, and collect less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, OLDER_EVERY, OLDER_EVERY)


def give_back() -> None:
    """Collect what waits for it and return freed pages to the system, in some ten milliseconds; for a moment when little is done.

    The C library keeps what was freed between pieces that are still used: after 300 objects had come up, 6 of 114 MiB.
    """
    gc.collect()
    with suppress(AttributeError, OSError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)
