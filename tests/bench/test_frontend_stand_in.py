"""What the stand-in for TorchServe's frontend sends, and to whom it gives what comes back; the worker is one of the test's own."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import frontend_stand_in
import pytest
from frontend_stand_in import FrontendStandIn, Piece

BATCH_SIZE = 2
DEADLINE_SECONDS = 30
LAST_WORDS = "Rank 0: the engine has stopped."


class Worker:
    """Reads messages as `ts.protocol.otf_message_handler` does, and answers as a test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def loads(self) -> None:
        assert await self._reader.readexactly(1) == b"L"
        for _ in ("name", "directory"):
            await self._sized()
        assert await self._number() == BATCH_SIZE
        assert await self._sized() == b"lmd_worker.handler"
        assert (await self._number(), await self._sized()) == (-1, b"")
        assert await self._reader.readexactly(1) == b"\1"
        self.reply({})

    async def message(self) -> dict[str, tuple[str, bytes | None]]:
        """Return each request's path and body."""
        assert await self._reader.readexactly(1) == b"I"
        requests = {}
        while (length := await self._number()) >= 0:
            request_id = (await self._reader.readexactly(length)).decode()
            headers, bodies = {}, []
            while (length := await self._number()) >= 0:
                name = (await self._reader.readexactly(length)).decode()
                headers[name] = (await self._sized()).decode()
            while (length := await self._number()) >= 0:
                assert await self._reader.readexactly(length) == b"body"
                assert await self._sized() == b"application/json"
                bodies.append(await self._sized())
            assert headers["content-type"] == "application/json"
            requests[request_id] = (headers["url_path"], bodies[0] if bodies else None)
        return requests

    def reply(self, pieces: dict[str, tuple[bytes, str | None]], status: int = 200) -> None:
        """Send each request's piece and what is said of the next one, byte by byte."""
        parts = [struct.pack("!i", status), _sized("Prediction")]
        for request_id, (body, stream_next) in pieces.items():
            headers = {"content-type": "text/event-stream"} | ({} if stream_next is None else {"ts_stream_next": stream_next})
            parts += [
                _sized(request_id),
                _sized("text/event-stream"),
                struct.pack("!i", 200),
                _sized("OK"),
                struct.pack("!i", len(headers)),
            ]
            parts += [_sized(part) for header in headers.items() for part in header] + [struct.pack("!i", len(body)), body]
        for byte in b"".join([*parts, struct.pack("!i", -1)]):
            self._writer.write(bytes([byte]))

    def leave(self) -> None:
        self._writer.close()

    async def _number(self) -> int:
        return int.from_bytes(await self._reader.readexactly(4), "big", signed=True)

    async def _sized(self) -> bytes:
        return await self._reader.readexactly(await self._number())


def _sized(text: str) -> bytes:
    return struct.pack("!i", len(text)) + text.encode()


@asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[tuple[FrontendStandIn, Worker]]:
    came: asyncio.Queue[Worker] = asyncio.Queue()
    server = await asyncio.start_unix_server(lambda *streams: came.put_nowait(Worker(*streams)), folder / "socket")
    async with server, asyncio.TaskGroup() as tasks:

        async def load() -> Worker:
            worker = await came.get()
            await worker.loads()
            return worker

        loading = tasks.create_task(load())
        async with frontend_stand_in.loaded(folder / "socket", Path("/store/model"), BATCH_SIZE, None) as frontend:
            worker = await loading
            try:
                yield frontend, worker
            finally:
                worker.leave()


def collect(frontend: FrontendStandIn, body: bytes) -> asyncio.Task[list[Piece]]:
    async def pieces() -> list[Piece]:
        return [piece async for piece in frontend.predict("v1/completions", body)]

    return asyncio.create_task(pieces())


def test_each_request_is_told_once_and_gets_its_own_pieces(tmp_path: Path) -> None:
    async def talk() -> None:
        async with connected(tmp_path) as (frontend, worker):
            first = collect(frontend, b"first")
            (one,) = told = await worker.message()
            assert told[one] == ("v1/completions", b"first")
            second, third = collect(frontend, b"second"), collect(frontend, b"third")
            await asyncio.sleep(0)
            worker.reply({one: (b"a", "true")})

            told = await worker.message()
            assert list(told.values()) == [("v1/completions", None), ("v1/completions", b"second")], "a batch has two places"
            (_, two) = told
            worker.reply({one: (b"b", "false"), two: (b"whole", None)})

            (three,) = told = await worker.message()
            assert told[three] == ("v1/completions", b"third")
            worker.reply({three: (b"c", None)})
            assert await first == [Piece(200, b"a", is_last=False), Piece(200, b"b", is_last=True)]
            assert await second == [Piece(200, b"whole", is_last=True)]
            assert await third == [Piece(200, b"c", is_last=True)]

    asyncio.run(asyncio.wait_for(talk(), DEADLINE_SECONDS))


def leave(folder: Path, worker: Worker) -> None:
    (folder / frontend_stand_in.LAST_WORDS).write_text(LAST_WORDS)
    worker.leave()


def refuse(_: Path, worker: Worker) -> None:
    worker.reply({}, 507)


@pytest.mark.parametrize(("end", "words"), [(leave, LAST_WORDS), (refuse, "the worker answered 507: Prediction")])
def test_nobody_waits_for_a_worker_that_is_gone(tmp_path: Path, end: Callable[[Path, Worker], None], words: str) -> None:
    async def talk() -> None:
        async with connected(tmp_path) as (frontend, worker):
            sent = collect(frontend, b"first")
            await worker.message()
            waiting = collect(frontend, b"second")
            await asyncio.sleep(0)
            end(tmp_path, worker)
            for request in (sent, waiting, collect(frontend, b"late")):
                with pytest.raises(RuntimeError, match=words):
                    await request

    asyncio.run(asyncio.wait_for(talk(), DEADLINE_SECONDS))
