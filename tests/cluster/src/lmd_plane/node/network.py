"""Into a network namespace: threads that work inside it, and the ways between it and the API server."""

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
    """Return a socket that listens on every address inside the namespace of a process."""

    def listen() -> socket.socket:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("", port))
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


async def connect(pid: int, path: Path) -> None:
    """Answer CONNECT on a local socket with connections that begin inside the namespace of a process, for ever."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            host, _, port = head.split()[1].decode().rpartition(":")
            far_reader, far_writer = await _dial(pid, host, int(port))
        except (asyncio.IncompleteReadError, OSError) as error:
            writer.write(f"HTTP/1.1 502 {error}\r\n\r\n".encode())
            writer.close()
            return
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))

    async with await asyncio.start_unix_server(pass_on, path) as server:
        await server.serve_forever()


async def _dial(pid: int, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect from inside the namespace of a process: a socket belongs to the one that it was made in."""
    dialling = inside(pid, socket.socket)
    dialling.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(dialling, (host, port))
    except BaseException:
        dialling.close()
        raise
    return await asyncio.open_connection(sock=dialling)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


def main() -> None:
    """Relay between the namespace of a process and this one: `python -m lmd_plane.node.network PID PORT SOCKET`.

    PORT inside leads to PORT of our own loopback, the API server; who connects to SOCKET gets to addresses inside.
    """
    pid, port, path = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])

    async def both() -> None:
        await asyncio.gather(relay(listener(pid, port), port), connect(pid, path))

    asyncio.run(both())


if __name__ == "__main__":
    main()
