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


def row(name: str, body: bytes | None, path: bytes = b"v1/completions") -> bytes:
    """One request; it goes on if it has no body."""
    end = struct.pack("!i", -1)
    headers = field(b"url_path") + field(path) + field(b"Accept") + field(b"") + end
    return field(name.encode()) + headers + (field(b"body") + field(b"application/json") + field(body) if body is not None else b"") + end


def inference(*rows: bytes) -> bytes:
    """A message as org.pytorch.serve.util.codec.ModelRequestEncoder writes it."""
    return b"I" + b"".join(rows) + struct.pack("!i", -1)


def message(bodies: list[bytes]) -> bytes:
    """An inference of so many new requests."""
    return inference(*(row(f"id-{index}", body) for index, body in enumerate(bodies)))


def told(rows: list[dict[str, Any]]) -> list[tuple[str, int, list[bytes]]]:
    """Of each request its name, the number of its headers and its bodies."""
    return [(each["requestId"].decode(), len(each["headers"]), [one["value"] for one in each["parameters"]]) for each in rows]


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
    for name in ("_retrieve_buffer", "_retrieve_inference_msg"):
        monkeypatch.setattr(otf_message_handler, name, getattr(otf_message_handler, name))
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


def test_a_request_that_goes_on_is_told_by_its_name(parser, ends) -> None:
    theirs, ours = ends
    messages = [
        (inference(row("a", b"1"), row("b", b"2")), [("a", 2, [b"1"]), ("b", 2, [b"2"])]),
        (inference(row("a", None), row("b", None), row("c", b"3")), [("a", 0, []), ("b", 0, []), ("c", 2, [b"3"])]),
        (inference(row("b", None), row("c", None)), [("b", 0, []), ("c", 0, [])]),
        (inference(row("c", None), row("b", b"4")), [("c", 0, []), ("b", 2, [b"4"])]),
        (inference(row("c", None, path=b"v1/models"), row("b", None)), [("c", 2, []), ("b", 2, [])]),
        (inference(), []),
        (inference(row("c", None)), [("c", 2, [])]),
    ]
    for sent, expected in messages:
        theirs.sendall(sent)
        assert told(parser.retrieve_msg(ours)[1]) == expected


def test_a_message_that_comes_byte_by_byte_is_read_whole(parser, ends) -> None:
    theirs, ours = ends
    theirs.sendall(inference(row("a", b"1"), row("b", b"2")))
    parser.retrieve_msg(ours)

    def send() -> None:
        for byte in inference(row("a", None), row("b", None), row("c", b"3")):
            theirs.sendall(bytes([byte]))

    writer = threading.Thread(target=send)
    writer.start()
    read = told(parser.retrieve_msg(ours)[1])
    writer.join()
    assert [(name, bodies) for name, _, bodies in read] == [("a", []), ("b", []), ("c", [b"3"])]


def test_the_process_ends_when_the_frontend_leaves_in_the_middle_of_a_message(ends) -> None:
    theirs, ours = ends
    theirs.sendall(b"abc")
    theirs.close()
    reader = Reader()
    assert reader(ours, 2) == b"ab"
    with pytest.raises(SystemExit) as ending:
        reader(ours, 2)
    assert ending.value.code == 0
