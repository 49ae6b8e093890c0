"""Ports of this machine: one the user chooses, and free ones for everything else.

A server binds its port long after it was chosen for it. Until then others may be given it: their own servers, or any connection
that somebody opens. So every port is held from its choice to the end of this process, by a socket that is bound but never listens;
a server that sets SO_REUSEADDR, as all of them do, can listen beside it.
"""

from __future__ import annotations

import socket

from lmd_operator.errors import LocalRunError

LOOPBACK = "127.0.0.1"


def require_free(port: int) -> int:
    """Return the port if it can be bound on loopback. Raises `LocalRunError` naming the remedy."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1 if port else 0)
    try:
        holder.bind((LOOPBACK, port))
    except OSError as error:
        holder.close()
        raise LocalRunError(
            f"port {port} on {LOOPBACK} cannot be used ({error.strerror}): stop what listens there, or choose another port "
            "with --port (0 picks a free one)"
        ) from error
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held = int(holder.getsockname()[1])
    holder.detach()  # it stays open until this process ends
    return held


def free_ports(count: int) -> list[int]:
    """Return distinct ports that are free now, and that nobody else is given while this process runs."""
    return [require_free(0) for _ in range(count)]
