"""Ports of this machine: one the user chooses, and free ones for everything else."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from lmd_operator.errors import LocalRunError

LOOPBACK = "127.0.0.1"


def require_free(port: int) -> int:
    """Return the port if it can be bound on loopback. Raises `LocalRunError` naming the remedy."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError as error:
            raise LocalRunError(
                f"port {port} on {LOOPBACK} cannot be used ({error.strerror}): stop what listens there, or choose another port "
                "with --port (0 picks a free one)"
            ) from error
        return int(listener.getsockname()[1])


def free_ports(count: int) -> list[int]:
    """Return distinct ports that are free now."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind((LOOPBACK, 0))
        return [int(listener.getsockname()[1]) for listener in listeners]
