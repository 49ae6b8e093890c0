"""Stands where TorchServe's frontend stands: starts the worker's process, has it load a model and sends it batches; no JVM, no HTTP.

What goes over the socket is what the frontend sends for one rank under continuous batching (torchserve 0.12.0, ModelRequestEncoder.java,
ContinuousBatching.java): a message names all open requests in the order in which they came, a new one with its body, a known one with
nothing more. Its reply has a piece for each and says who has ended. Requests that come meanwhile wait for the next message.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from worker_bench import NAME, started

from lmd_operator.names import HANDLER_MODULE
from lmd_worker import bootstrap, metrics
from lmd_worker.environment import RUN_DIRECTORY, TERMINATION_MESSAGE_PATH

LAST_WORDS = "last-words"
OK = 200
READ_BYTES = 2**20
END_OF_LIST = struct.pack("!i", -1)
MORE_TO_COME = ("ts_stream_next", "true")
HEADERS = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Piece:
    """What one message brought for one request."""

    status: int
    body: bytes
    is_last: bool


@dataclass(slots=True)
class Job:
    """One open request; what is put into `pieces` is its answer, or why there is none."""

    request_id: str
    path: str
    body: bytes
    is_known: bool = False
    pieces: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)


class FrontendStandIn:
    """A loaded worker, as its clients see it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, batch_size: int, last_words: Path) -> None:
        self._reader = reader
        self._writer = writer
        self._batch_size = batch_size
        self._last_words = last_words
        self._waiting: asyncio.Queue[Job] = asyncio.Queue()
        self._open: dict[str, Job] = {}
        self._failure: Exception | None = None

    async def predict(self, path: str, body: bytes) -> AsyncIterator[Piece]:
        """Send one request to a path below the model's name; yield the pieces of its answer. Raises `RuntimeError` without a worker."""
        if self._failure is not None:
            raise self._failure
        job = Job(str(uuid.uuid4()), path, body)
        self._waiting.put_nowait(job)
        while True:
            piece = await job.pieces.get()
            if isinstance(piece, Exception):
                raise piece
            yield piece
            if piece.is_last:
                return

    async def run(self) -> None:
        """Exchange messages for as long as the worker does; when it ends, so does every request."""
        try:
            while True:
                await self._exchange()
        except Exception as error:  # whatever it is, the clients must not wait for ever
            self._failure = ended(self._last_words) if isinstance(error, OSError | EOFError) else error
            waiting = [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]
            for job in [*self._open.values(), *waiting]:
                job.pieces.put_nowait(self._failure)

    async def _exchange(self) -> None:
        """Send all open requests, with those that waited, as many as a batch has places for; give out what comes back."""
        while not self._open or (self._waiting.qsize() and len(self._open) < self._batch_size):
            job = await self._waiting.get()
            self._open[job.request_id] = job
        self._writer.write(predict_message(self._open.values()))
        await self._writer.drain()
        for request_id, piece in (await read_reply(self._reader)).items():
            job = self._open[request_id]
            job.is_known = True
            job.pieces.put_nowait(piece)
            if piece.is_last:
                del self._open[request_id]


@contextmanager
def worker(variables: Mapping[str, str]) -> Iterator[Path]:
    """Start the worker's process as the frontend starts a single rank; yield its socket."""
    packages = bootstrap.site_packages()
    with tempfile.TemporaryDirectory() as folder:
        sock = Path(folder) / ".ts.sock.9000"
        metrics.write_config(packages / "ts", Path(folder))
        command = [
            *(sys.executable, str(packages / "ts" / "model_service_worker.py")),
            *("--sock-type", "unix", "--sock-name", str(sock)),
            *("--metrics-config", str(Path(folder) / metrics.FILE_NAME)),
        ]
        told = {"TS_DECODE_INPUT_REQUEST": "false", RUN_DIRECTORY: folder, TERMINATION_MESSAGE_PATH: str(sock.with_name(LAST_WORDS))}
        with started(command, r"(Torch worker started)", {**told, **variables}):
            yield sock


@asynccontextmanager
async def loaded(sock: Path, model_directory: Path, batch_size: int, gpu: int | None) -> AsyncIterator[FrontendStandIn]:
    """Have the worker load the model of TorchServe's model directory. Raises `RuntimeError` with its words when it does not."""
    reader, writer = await asyncio.open_unix_connection(str(sock))
    last_words = sock.with_name(LAST_WORDS)
    with closing(writer):
        writer.write(load_message(model_directory, batch_size, gpu))
        try:
            await read_reply(reader)
        except (OSError, EOFError) as error:
            raise ended(last_words) from error
        frontend = FrontendStandIn(reader, writer, batch_size, last_words)
        exchanging = asyncio.create_task(frontend.run())
        try:
            yield frontend
        finally:
            exchanging.cancel()
            with suppress(asyncio.CancelledError):
                await exchanging


def ended(last_words: Path) -> RuntimeError:
    """Return the error for a worker that is gone, with what it left."""
    return RuntimeError(f"the worker has ended: {last_words.read_text() if last_words.exists() else 'it left no last words'}")


def load_message(model_directory: Path, batch_size: int, gpu: int | None) -> bytes:
    """Name, directory, batch size, handler, GPU, no envelope, and that images may not be of any size."""
    parts = [b"L", text(NAME), text(str(model_directory)), struct.pack("!i", batch_size), text(HANDLER_MODULE)]
    return b"".join([*parts, struct.pack("!i", -1 if gpu is None else gpu), text(""), struct.pack("!?", True)])


def predict_message(jobs: Iterable[Job]) -> bytes:
    """All open requests: name, headers, and the body of those that the worker does not know."""
    parts = [b"I"]
    for job in jobs:
        headers = {**HEADERS, "url_path": job.path}
        parts += [text(job.request_id), *(text(part) for header in headers.items() for part in header), END_OF_LIST]
        if not job.is_known:
            parts += [text("body"), text(HEADERS["content-type"]), sized(job.body)]
        parts.append(END_OF_LIST)
    return b"".join([*parts, END_OF_LIST])


async def read_reply(reader: asyncio.StreamReader) -> dict[str, Piece]:
    """Read one reply. Raises `RuntimeError` when it refuses the whole message, `EOFError` when there is no worker to send one."""
    data = b""
    while chunk := await reader.read(READ_BYTES):
        data += chunk
        with suppress(struct.error):  # not whole yet; nothing follows a reply before the next message
            status, words, pieces = parse_reply(Fields(data))
            if status != OK:
                raise RuntimeError(f"the worker answered {status}: {words}")
            return pieces
    raise EOFError


def parse_reply(fields: Fields) -> tuple[int, str, dict[str, Piece]]:
    """Return a reply's status, what it says, and the pieces by request. Raises `struct.error` when it is not whole."""
    status, words, pieces = fields.number(), fields.text(), {}
    while (length := fields.number()) >= 0:
        request_id = fields.take(length).decode()
        fields.text()  # the content type, which is among the headers too
        own_status = fields.number()
        fields.text()  # the status in words
        headers = [(fields.text(), fields.text()) for _ in range(fields.number())]
        pieces[request_id] = Piece(own_status, fields.sized(), MORE_TO_COME not in headers)
    return status, words, pieces


class Fields:
    """Bytes of a reply, taken from the front; `struct.error` where they end too early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, length: int) -> bytes:
        if self._at + length > len(self._data):
            raise struct.error
        self._at += length
        return self._data[self._at - length : self._at]

    def number(self) -> int:
        return int.from_bytes(self.take(4), "big", signed=True)

    def sized(self) -> bytes:
        return self.take(self.number())

    def text(self) -> str:
        return self.sized().decode()


def text(value: str) -> bytes:
    return sized(value.encode())


def sized(value: bytes) -> bytes:
    return struct.pack("!i", len(value)) + value
