"""Into a network namespace: threads that work inside it, and the way from it to the API server."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lmd_plane.components import LOOPBACK

_CLONE_NEWNET = 0x40000000
"""From linux/sched.h."""
_PIECE = 65536

Result = TypeVar("Result")


def inside(pid: int, work: Callable[[], Result]) -> Result:
    """Do work in a thread that has entered the network namespace of a process; sockets made there belong to it."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            enter(pid)
            results.append(work())
        except BaseException as error:  # handed to the caller, whose thread this stands for
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def enter(pid: int) -> None:
    """Move the calling thread, and only it, into the network namespace of a process, for the rest of its life."""
    with Path(f"/proc/{pid}/ns/net").open() as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def listener(pid: int, port: int) -> socket.socket:
    """Return a socket that listens on loopback inside the namespace of a process."""

    def listen() -> socket.socket:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((LOOPBACK, port))
        listening.listen(64)
        return listening

    return inside(pid, listen)


async def relay(listening: socket.socket, port: int) -> None:
    """Pass every connection on to the same port of our own loopback, for ever."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(LOOPBACK, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))

    async with await asyncio.start_server(pass_on, sock=listening) as server:
        await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


def main() -> None:
    """Relay from the namespace of a process to this one: `python -m lmd_plane.node.network PID PORT`."""
    pid, port = int(sys.argv[1]), int(sys.argv[2])
    asyncio.run(relay(listener(pid, port), port))


if __name__ == "__main__":
    main()
