"""Ports of loopback for what a test starts."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from lmd_plane.components import LOOPBACK


def free_ports(count: int) -> list[int]:
    """Return distinct ports that are free now."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind((LOOPBACK, 0))
        return [int(listener.getsockname()[1]) for listener in listeners]
