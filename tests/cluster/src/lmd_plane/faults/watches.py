"""One open watch: events pass a line at a time, unless a rule or a test says otherwise."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Sequence

from aiohttp import ClientResponse, web

from lmd_plane.faults.requests import Exchange
from lmd_plane.faults.rules import Action, CutWatch, DelayEvents, FailWatch, FreezeWatch, Rule, error_event


class Watch:
    """A watch between one client and the server; its methods belong to the proxy's event loop."""

    def __init__(self, incoming: web.BaseRequest, exchange: Exchange, rules: Sequence[Rule]) -> None:
        self.exchange = exchange
        self._incoming = incoming
        self._rules = rules
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._passing: asyncio.Task[None] | None = None
        self._last_words = b""

    def freeze(self) -> None:
        """Hold everything back from now on."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Let everything pass again."""
        self._flowing.set()

    def cut(self) -> None:
        """Reset the connection."""
        _reset(self._incoming)

    def end(self, last_words: bytes = b"") -> None:
        """End the response in good order, after these last words."""
        self._last_words = last_words
        if self._passing is not None:
            self._passing.cancel()

    async def relay(self, answer: ClientResponse, fate: Action | None) -> web.StreamResponse:
        """Pass events on until the watch ends, by whichever side."""
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(self._incoming)
        self._passing = asyncio.create_task(self._pass(answer, response, fate))
        try:
            await asyncio.wait({self._passing})
        finally:
            self._passing.cancel()
        if not self._passing.cancelled() and self._passing.exception() is not None:
            return await reset(self._incoming)  # the server's side broke
        if self._last_words:
            await response.write(self._last_words)
        await response.write_eof()
        return response

    async def _pass(self, answer: ClientResponse, response: web.StreamResponse, fate: Action | None) -> None:
        self._decide(fate)
        async for line in _lines(answer):
            await self._flowing.wait()
            if await self._swallowed(line):
                continue
            await response.write(line)
            self.exchange.events += 1
            self._decide(fate)

    def _decide(self, fate: Action | None) -> None:
        """Do what was asked for after so many events."""
        if isinstance(fate, CutWatch | FreezeWatch | FailWatch) and fate.after_events == self.exchange.events:
            match fate:
                case CutWatch():
                    self.cut()
                case FreezeWatch():
                    self.freeze()
                case FailWatch():
                    self.end(error_event(fate.code))

    async def _swallowed(self, line: bytes) -> bool:
        event = json.loads(line)
        due = [rule.action for rule in list(self._rules) if rule.fires_for_event(self.exchange.request, event)]
        for action in due:
            if isinstance(action, DelayEvents):
                await asyncio.sleep(action.seconds)
        return any(not isinstance(action, DelayEvents) for action in due)


async def reset(incoming: web.BaseRequest) -> web.StreamResponse:
    """Reset the client's connection and wait to be cancelled for that."""
    _reset(incoming)
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def _reset(incoming: web.BaseRequest) -> None:
    transport = incoming.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def _lines(answer: ClientResponse) -> AsyncIterator[bytes]:
    """Yield the lines of a stream, however long."""
    rest = b""
    async for chunk in answer.content.iter_any():
        *complete, rest = (rest + chunk).split(b"\n")
        for line in complete:
            yield line + b"\n"
