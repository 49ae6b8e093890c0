"""Ports of loopback for what a test starts."""

from __future__ import annotations

import socket

from lmd_plane.components import LOOPBACK


def free_ports(count: int) -> list[int]:
    """Return distinct ports that are free now, and that nobody else is given while this process runs.

    A socket that is bound but never listens holds each of them; servers set SO_REUSEADDR, and so can listen beside it.
    """
    return [_hold() for _ in range(count)]


def _hold() -> int:
    holder = socket.socket()
    holder.bind((LOOPBACK, 0))
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # set later than that, or others could be given the same port
    port = int(holder.getsockname()[1])
    holder.detach()  # it stays open until this process ends
    return port
