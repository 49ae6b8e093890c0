"""The frontend's messages, read by TorchServe's own parser through our reader."""

from __future__ import annotations

import os
import socket
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from lmd_worker.wire import Reader, read_in_large_pieces


def field(content: bytes) -> bytes:
    return struct.pack("!i", len(content)) + content


def message(bodies: list[bytes]) -> bytes:
    """An inference of so many requests, as org.pytorch.serve.util.codec.ModelRequestEncoder writes it."""
    rows = []
    for index, body in enumerate(bodies):
        headers = field(b"url_path") + field(b"v1/completions") + struct.pack("!i", -1)
        parameters = field(b"body") + field(b"application/json") + field(body) + struct.pack("!i", -1)
        rows.append(field(f"id-{index}".encode()) + headers + parameters)
    return b"I" + b"".join(rows) + struct.pack("!i", -1)


class Counted:
    """A socket that counts how often it is read."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.reads = 0

    def recv(self, size: int, /) -> bytes:
        self.reads += 1
        return self.connection.recv(size)


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch) -> Any:
    """TorchServe's, with our reader in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # importing `ts` leaves a file open
        from ts.protocol import otf_message_handler
    monkeypatch.setattr(otf_message_handler, "_retrieve_buffer", otf_message_handler._retrieve_buffer)
    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "false")
    read_in_large_pieces()
    return otf_message_handler


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Counted]]:
    theirs, ours = socket.socketpair()
    with theirs, ours:
        yield theirs, Counted(ours)


def test_messages_are_what_they_were_with_a_read_each(parser, ends) -> None:
    theirs, ours = ends
    for bodies in ([b"{}"] * 16, [], [b'{"prompt": "a"}']):
        theirs.sendall(message(bodies))
        command, rows = parser.retrieve_msg(ours)
        assert command == b"I"
        assert [row["parameters"][0]["value"] for row in rows] == bodies
        assert [row["requestId"].decode() for row in rows] == [f"id-{index}" for index in range(len(bodies))]
    assert ours.reads == 3


def test_two_messages_that_come_together_and_one_larger_than_a_piece_are_told_apart(parser, ends) -> None:
    theirs, ours = ends
    large = os.urandom(3 << 20)
    writer = threading.Thread(target=theirs.sendall, args=(message([b"1"]) + message([large, b"2"]) + message([b"3"]),))
    writer.start()
    read = [[row["parameters"][0]["value"] for row in parser.retrieve_msg(ours)[1]] for _ in range(3)]
    writer.join()
    assert read == [[b"1"], [large, b"2"], [b"3"]]


def test_the_process_ends_when_the_frontend_leaves_in_the_middle_of_a_message(ends) -> None:
    theirs, ours = ends
    theirs.sendall(b"abc")
    theirs.close()
    reader = Reader()
    assert reader(ours, 2) == b"ab"
    with pytest.raises(SystemExit) as ending:
        reader(ours, 2)
    assert ending.value.code == 0
