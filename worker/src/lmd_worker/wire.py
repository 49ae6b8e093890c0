"""Reads the frontend's messages in large pieces.

`ts` asks the kernel for every length and every field by itself: some forty reads for each open request at each step, at each of which
the thread gives up Python's lock and fights the engine's for it. Source: ts/protocol/otf_message_handler.py, `_retrieve_buffer`
(torchserve 0.12.0).
"""

from __future__ import annotations

import logging
import sys
from typing import Protocol

PIECE_BYTES = 1 << 18

log = logging.getLogger(__name__)


class Connection(Protocol):
    """What is used of a socket."""

    def recv(self, size: int, /) -> bytes: ...  # noqa: D102


class Reader:
    """Stands in for `_retrieve_buffer`; keeps what came behind the bytes that were asked for. For one connection."""

    def __init__(self) -> None:
        self._read = bytearray()
        self._position = 0

    def __call__(self, connection: Connection, length: int) -> bytearray:
        """Return exactly the next `length` bytes; end the process when the frontend has left, as the original does."""
        while len(self._read) - self._position < length:
            piece = connection.recv(max(PIECE_BYTES, length))
            if not piece:
                log.info("The frontend has left.")
                sys.exit(0)
            del self._read[: self._position]
            self._position = 0
            self._read += piece
        begin, self._position = self._position, self._position + length
        return self._read[begin : self._position]


def read_in_large_pieces() -> None:
    """Make `ts` read so from the next message on; call between two messages, in a process with one connection."""
    from ts.protocol import otf_message_handler

    otf_message_handler._retrieve_buffer = Reader()
