"""How the kernel gives the cores to threads that compute beside threads that speak with clients."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

SLICE_NANOSECONDS = 10_000_000
"""Of a thread that computes; the kernel's own is 0.7 ms and more, by the number of cores, and those who speak keep that."""
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""The system call's number; glibc has had a function for it since 2.41. Source: Linux, arch/x86/entry/syscalls, asm-generic/unistd.h."""


class Attributes(ctypes.Structure):
    """`struct sched_attr` in its first version. Source: Linux, include/uapi/linux/sched/types.h."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def wake_without_preempting() -> None:
    """Schedule this thread, and those it makes from now on, as batch work: what arrives for one never takes a core from a running thread.

    gloo's thread for arrivals only tries the lock of a connection, and polls for as long as a sender has it (gloo, transport/tcp/pair.cc,
    `Pair::handleEvents`). A sender that it has taken the core from gets that back at the end of a time slice: with three ranks on two
    cores a reduction took 3.0 ms instead of 0.7 (tests/bench/reduction_bench.py). Where this is not allowed, all is as it was.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def let_brief_threads_in() -> None:
    """Give this thread, and those it makes from now on, long time slices: who has shorter ones takes a core from it as soon as it wakes.

    Otherwise the frontend's threads, which pass a token on five times with a tenth of a millisecond's work each, wait for the end of a
    slice each time. Kernels before Linux 6.12 know no slice of a thread's own; there, and where it is not allowed, all is as it was.
    """
    number = SCHED_SETATTR.get(platform.machine())
    if number is not None:
        wanted = Attributes(
            size=ctypes.sizeof(Attributes), policy=os.SCHED_OTHER, nice=os.getpriority(os.PRIO_PROCESS, 0), runtime=SLICE_NANOSECONDS
        )
        ctypes.CDLL(None).syscall(number, 0, ctypes.byref(wanted), 0)
