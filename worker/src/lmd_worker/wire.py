"""Reads the frontend's messages in large pieces, and what it has read already not again.

`ts` asks the kernel for every length and every field by itself: some forty reads for each open request at each step, at each of which
the thread gives up Python's lock and fights the engine's for it. And every message repeats all headers of every open request; only in
its first has a request a body. Source: ts/protocol/otf_message_handler.py, `_retrieve_buffer` and `_retrieve_inference_msg`
(torchserve 0.12.0).
"""

from __future__ import annotations

import logging
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

PIECE_BYTES = 1 << 18
INTEGER = struct.Struct("!i")
END_OF_LIST = INTEGER.pack(-1)

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

    def skip(self, expected: bytes) -> bool:
        """Pass over the next bytes if they have come and are these; return whether they were."""
        is_next = self._read.startswith(expected, self._position)
        self._position += len(expected) * is_next
        return is_next


class Rows:
    """Stands in for `_retrieve_inference_msg`: of a request that goes on, the headers are not read again.

    The frontend names open requests in the order they came, so that those of the last message come first, less those that have ended.
    """

    def __init__(self, reader: Reader, read_row: Callable[[Any], dict[str, Any] | None]) -> None:
        self._reader = reader
        self._read_row = read_row
        self._going_on: list[tuple[bytes, dict[str, Any]]] = []

    def __call__(self, connection: Connection) -> list[dict[str, Any]]:
        """Return the requests of one message as the original does, but without headers where they are those of the message before."""
        going_on = [known for known in self._going_on if self._reader.skip(known[0])]
        rows = [row for _, row in going_on]
        while (row := self._read_row(connection)) is not None:
            rows.append(row)
            going_on.append((_without_body(row), {"requestId": row["requestId"], "headers": [], "parameters": []}))
        self._going_on = going_on
        return rows


def read_in_large_pieces() -> None:
    """Make `ts` read so from the next message on; call between two messages, in a process with one connection."""
    from ts.protocol import otf_message_handler

    reader = Reader()
    otf_message_handler._retrieve_buffer = reader
    otf_message_handler._retrieve_inference_msg = Rows(reader, otf_message_handler._retrieve_request)


def _without_body(row: Mapping[str, Any]) -> bytes:
    """Return what a later message has for the same request."""
    fields = [row["requestId"], *(part for header in row["headers"] for part in (header["name"], header["value"]))]
    return b"".join(INTEGER.pack(len(field)) + field for field in fields) + 2 * END_OF_LIST
