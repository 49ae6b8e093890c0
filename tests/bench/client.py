"""A client of OpenAI's interface that takes next to nothing from the cores it measures: what it has heard is read afterwards."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import h11

ANSWER_SECONDS = 1800
LAST_CHUNK = b"0\r\n\r\n"
"""Of a body in chunks; no event ends so."""


class Streamed:
    """One streamed answer as it came, times in seconds of the monotonic clock. Reading it raises `RuntimeError` where it is an error."""

    def __init__(self, url: str, connection: h11.Connection, asked: float, pieces: list[tuple[float, bytes]]) -> None:
        self.asked = asked
        self._url = url
        self._connection = connection
        self._pieces = pieces

    @cached_property
    def came(self) -> list[float]:
        """When each piece of text came."""
        return [at for at, event in self._events if any(choice.get("text") for choice in event.get("choices") or ())]

    @cached_property
    def tokens(self) -> int:
        """How many tokens the answer had; its pieces, where the server does not say."""
        said = [event["usage"]["completion_tokens"] for _, event in self._events if event.get("usage")]
        return said[-1] if said else len(self.came)

    @cached_property
    def _events(self) -> list[tuple[float, dict[str, Any]]]:
        events, begun = [], b""
        for at, piece in self._body():
            *lines, begun = (begun + piece).split(b"\n")
            data = (line.decode().strip().removeprefix("data: ") for line in lines)
            events += [(at, json.loads(document)) for document in data if document not in ("", "[DONE]")]
        return events

    def _body(self) -> Iterator[tuple[float, bytes]]:
        status, told = 0, b""
        for at, piece in [*self._pieces, (0.0, b"")]:  # the last is the end of the connection
            self._connection.receive_data(piece)
            while isinstance(event := self._connection.next_event(), h11.Response | h11.Data):
                if isinstance(event, h11.Response):
                    status = event.status_code
                elif status == 200:
                    yield at, bytes(event.data)
                else:
                    told += event.data
        if status != 200:
            raise RuntimeError(f"{self._url} answered {status}: {told.decode(errors='replace')}")


async def ask(url: str, prompt: str, extra: Mapping[str, Any]) -> Streamed:
    """Stream one greedy completion of `max_tokens` in `extra`, over a connection of its own. Raises `TimeoutError`, `OSError`."""
    connection, request = prepared(url, {"prompt": prompt, "temperature": 0, "stream": True, **extra})
    asked = time.monotonic()
    loop, parts = asyncio.get_running_loop(), urlsplit(url)
    _, listener = await loop.create_connection(lambda: _Listener(request, loop.create_future()), parts.hostname, parts.port)
    async with asyncio.timeout(ANSWER_SECONDS):
        await listener.ended
    return Streamed(url, connection, asked, listener.pieces)


def prepared(url: str, document: Mapping[str, Any]) -> tuple[h11.Connection, bytes]:
    """Return the bytes that send a document, and what understands the answer."""
    parts, body = urlsplit(url), json.dumps(document).encode()
    headers = {"Host": parts.netloc, "Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    connection = h11.Connection(h11.CLIENT)
    request = h11.Request(method="POST", target=parts.path, headers=list(headers.items()))
    return connection, b"".join(connection.send(event) or b"" for event in (request, h11.Data(data=body), h11.EndOfMessage()))


class _Listener(asyncio.Protocol):
    """Sends one request and keeps what comes until the answer or the connection ends: TorchServe keeps it open after a stream."""

    def __init__(self, request: bytes, ended: asyncio.Future[None]) -> None:
        self.pieces: list[tuple[float, bytes]] = []
        self.ended = ended
        self._request = request
        self._last = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.write(self._request)  # type: ignore[attr-defined]  # the protocol of a stream has a transport that writes

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.monotonic(), data))
        self._last = (self._last + data)[-len(LAST_CHUNK) :]
        if self._last == LAST_CHUNK:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)
