"""How far a fetch is: counted by the threads that read, shown in a terminal, logged, or served to the operator.

The operator asks the pod itself (`GET /progress`), so that the pod needs no token and the API server no write per tick.
"""

from __future__ import annotations

import http.server
import json
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

PORT = "LMD_PROGRESS_PORT"
"""Environment variable: where to tell of progress. Default: nowhere."""
WINDOW_SECONDS = 10.0
"""Speed is the mean over this long."""
LOG_SECONDS = 10.0
PATH = "/progress"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a fetch. `remaining_seconds` is None while nothing moves."""

    state: str
    bytes: int
    total: int
    bytes_per_second: int
    remaining_seconds: int | None

    @property
    def words(self) -> str:
        """Say it to a person."""
        if not self.total:
            return self.state
        percent = 100 * self.bytes // self.total
        rest = "" if self.remaining_seconds is None else f", {self.remaining_seconds} s left"
        return f"{self.state}: {percent}% of {readable(self.total)}, {readable(self.bytes_per_second)}/s{rest}"


class Meter:
    """Counts bytes. `add` is called by many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._state = "asking the source what there is"
        self._bytes = 0
        self._total = 0
        self._samples: deque[tuple[float, int]] = deque()

    def begin(self, total: int, already: int) -> None:
        """Say how many bytes there are in all, and how many an earlier fetch has left."""
        with self._lock:
            self._state, self._total, self._bytes = "fetching", total, already
            self._samples = deque([(self._clock(), already)])

    def say(self, state: str) -> None:
        """Say in words what is being done."""
        with self._lock:
            self._state = state

    def add(self, count: int) -> None:
        """Count bytes that have come; negative when they were thrown away."""
        now = self._clock()
        with self._lock:
            self._bytes += count
            if not self._samples or now - self._samples[-1][0] >= WINDOW_SECONDS / 20:
                self._samples.append((now, self._bytes))

    def now(self) -> Progress:
        """Return this moment."""
        now = self._clock()
        with self._lock:
            while len(self._samples) > 1 and now - self._samples[0][0] > WINDOW_SECONDS:
                self._samples.popleft()
            since, before = self._samples[0] if self._samples else (now, self._bytes)
            elapsed = now - since
            speed = int(max(self._bytes - before, 0) / elapsed) if elapsed > 0 else 0
            left = -(-(self._total - self._bytes) // speed) if speed else None
            return Progress(self._state, self._bytes, self._total, speed, left)


@contextmanager
def shown(meter: Meter, port: int | None) -> Iterator[None]:
    """Show the meter while the block runs: as a bar in a terminal, as a line every ten seconds elsewhere, and on `port`."""
    stop = threading.Event()
    watchers = [threading.Thread(target=_bar if sys.stderr.isatty() else _lines, args=(meter, stop), daemon=True)]
    server = _server(meter, port) if port is not None else None
    if server is not None:
        watchers.append(threading.Thread(target=server.serve_forever, daemon=True))
    for watcher in watchers:
        watcher.start()
    try:
        yield
    finally:
        stop.set()
        if server is not None:
            server.shutdown()
            server.server_close()
        for watcher in watchers:
            watcher.join()


def readable(count: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def _bar(meter: Meter, stop: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        while True:
            ended = stop.wait(0.2)
            now = meter.now()
            bar.update(task, description=now.state, completed=now.bytes, total=now.total or None)
            if ended:
                return


def _lines(meter: Meter, stop: threading.Event) -> None:
    last = ""
    while not stop.wait(LOG_SECONDS):
        words = meter.now().words
        if words != last:
            log.info("%s", words)
        last = words


def _server(meter: Meter, port: int) -> http.server.ThreadingHTTPServer:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            body = json.dumps(asdict(meter.now())).encode() if self.path == PATH else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            """Say nothing: the operator asks every few seconds."""

    server = http.server.ThreadingHTTPServer(("", port), Handler)
    server.daemon_threads = True
    return server
