"""One HTTP GET on loopback, over a bare socket: importing `http.client` would double the time of a start-up probe."""

from __future__ import annotations

import socket
import time

LARGEST_ANSWER_BYTES = 1 << 20
HTTP_OK = 200


class WebError(Exception):
    """The server could not be asked; the message says what happened."""


def get(host: str, port: int, path: str, timeout_seconds: float = 3.0) -> tuple[int, bytes]:
    """Return status and body; the answer must be whole within the timeout.

    HTTP/1.0, so that the server neither chunks nor keeps the connection. Raises `WebError`.
    """
    end = time.monotonic() + timeout_seconds
    try:
        with socket.create_connection((host, port), timeout=timeout_seconds) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode("ascii"))
            answer = _read_whole(connection, end)
    except OSError as error:
        raise WebError(f"http://{host}:{port}{path}: {error.strerror or error}") from error
    head, separator, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if not separator or not status or not status[0].isdigit():
        raise WebError(f"http://{host}:{port}{path}: no HTTP answer")
    return int(status[0]), body


def _read_whole(connection: socket.socket, end: float) -> bytes:
    """Read up to the declared length or the end of the connection."""
    answer = b""
    while not _is_whole(answer):
        left = end - time.monotonic()
        if left <= 0 or len(answer) > LARGEST_ANSWER_BYTES:
            raise TimeoutError("no whole answer in time")
        connection.settimeout(left)
        piece = connection.recv(65536)
        if not piece:
            break
        answer += piece
    return answer


def _is_whole(answer: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length" and value.strip().isdigit():
            return len(body) >= int(value)
    return False
