"""A real frontend on free ports, started as a container starts it, and its whole process tree ended afterwards."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from lmd_operator.local.ports import free_ports

MODEL = "echo"
RANKS = 2
DEADLINE_SECONDS = 120
MODEL_CONFIG = f"""
minWorkers: 1
maxWorkers: 1
batchSize: 8
maxBatchDelay: 1
responseTimeout: 60
startupTimeout: 120
maxRetryTimeoutInSec: 0
deviceType: cpu
continuousBatching: true
parallelType: tp
torchrun: {{nnodes: 1, nproc-per-node: {RANKS}, rdzv-endpoint: "localhost:0", OMP_NUMBER_THREADS: 1}}
handler: {{model_path: /nowhere, strategy: DeepSpeed, dtype: float32, concurrency: 8}}
deepspeed: {{config: ds-config.json}}
"""


class Frontend:
    """`lmd-worker serve` and what it started."""

    def __init__(self, directory: Path, ports: list[int], variables: Mapping[str, str]) -> None:
        self.run_directory = directory / "run"
        self.last_words = directory / "last-words"
        self.inference_port, self.management_port = ports[:2]
        self.probes_port = ports[5]
        self.log = directory / "log"
        self.variables = {
            **os.environ,
            "LMD_MODEL_NAME": MODEL,
            "LMD_MODEL_STORE": str(directory / "store"),
            "LMD_CONFIG_DIR": str(directory / "config"),
            "LMD_RUN_DIR": str(self.run_directory),
            "LMD_PROBES_ADDRESS": f"127.0.0.1:{self.probes_port}",
            "LMD_TERMINATION_MESSAGE_PATH": str(self.last_words),
            "LMD_JAVA_OPTIONS": "-Xmx256m",
            "LMD_DRAIN_LAG_SECONDS": "0",
            "TEMP": str(directory / "t"),
            "LOCAL_SIZE": str(RANKS),
            "PYTHONPATH": str(Path(__file__).parent),
            **variables,
        }
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "lmd_worker", "serve"]
            self.process = subprocess.Popen(command, env=self.variables, stdout=log, stderr=log, start_new_session=True)
        self.family: dict[int, psutil.Process] = {}

    def see(self) -> list[psutil.Process]:
        """Remember the processes of the tree, as orphans leave it; return those that live."""
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self.process.pid)
            for process in [root, *root.children(recursive=True)]:
                self.family.setdefault(process.pid, process)
        return [process for process in self.family.values() if _lives(process)]

    def besides(self) -> list[psutil.Process]:
        """What lives besides the frontend and the process that answers its probes."""
        found = []
        for process in self.see():
            with contextlib.suppress(psutil.Error):
                if process.pid != self.process.pid and "lmd_worker.probe_server" not in process.cmdline():
                    found.append(process)
        return found

    def ranks(self) -> dict[int, psutil.Process]:
        """The living ranks by number."""
        found = {}
        for process in self.see():
            with contextlib.suppress(psutil.Error):
                if "model_service_worker.py" in " ".join(process.cmdline()) and "torchrun" not in " ".join(process.cmdline()):
                    found[int(process.environ()["RANK"])] = process
        return found

    def command(self, name: str) -> tuple[int, str]:
        """Run the start-up probe or the drain as the kubelet does."""
        done = subprocess.run([sys.executable, "-m", "lmd_worker", name], env=self.variables, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.strip()

    def probe(self, path: str) -> tuple[int, str]:
        """Ask `/livez` or `/readyz` as the kubelet does; (0, "") while nobody listens."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.probes_port, timeout=DEADLINE_SECONDS)) as connection:
            try:
                connection.request("GET", path)
            except ConnectionRefusedError:
                return 0, ""
            with connection.getresponse() as response:
                return response.status, response.read().decode().strip()

    @contextlib.contextmanager
    def open(
        self, path: str, body: object, headers: Mapping[str, str] | None = None, method: str = "POST"
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request and give its answer once the head has come; leaving it closes the connection."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.inference_port, timeout=DEADLINE_SECONDS)) as connection:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, raw, {"Content-Type": "application/json"} if headers is None else dict(headers))
            with connection.getresponse() as response:
                yield response

    def ask(self, body: object, path: str = "", headers: Mapping[str, str] | None = None, method: str = "POST") -> tuple[int, str, Any]:
        """Return status, content type and the parsed JSON or the list of events."""
        full = f"/predictions/{MODEL}/1.0/{path}" if path else f"/predictions/{MODEL}"
        with self.open(full, body, headers, method) as response:
            kind = response.headers["content-type"]
            text = response.read().decode()
            return response.status, kind, events(text) if kind == "text/event-stream" else json.loads(text)

    def in_flight(self) -> int:
        """What rank 0 last left for the drain."""
        file = self.run_directory / "in-flight"
        return int(file.read_text()) if file.exists() else 0

    def cancelled(self) -> int:
        """How many requests the engine was told to forget."""
        file = self.run_directory / "cancelled"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def ping(self) -> int | None:
        """The status of /ping; None when the frontend is gone."""
        try:
            with self.open("/ping", b"", method="GET") as response:
                return response.status
        except (OSError, http.client.HTTPException):
            return None

    def end(self) -> None:
        """Kill what is left, by the ids seen."""
        for process in self.see():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait(timeout=DEADLINE_SECONDS)


def events(text: str) -> list[Any]:
    """Parse server-sent events; the closing [DONE] stays a string."""
    parts = text.split("\n\n")
    assert parts.pop() == ""
    values = [part.removeprefix("data: ") for part in parts]
    return [value if value == "[DONE]" else json.loads(value) for value in values]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _write_files(directory: Path, ports: list[int], handler: str) -> None:
    model = directory / "store" / MODEL
    (model / "MAR-INF").mkdir(parents=True)
    (directory / "config").mkdir()
    (directory / "t").mkdir()
    manifest = {"modelName": MODEL, "modelVersion": "1.0", "handler": handler, "configFile": "model-config.yaml"}
    whole = {"runtime": "python", "model": manifest, "archiverVersion": "0.12.0", "createdOn": "01/01/2025 00:00:00"}
    (model / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(whole))
    (model / "model-config.yaml").write_text(MODEL_CONFIG)
    (model / "ds-config.json").write_text(json.dumps({"dtype": "float32", "tensor_parallel": {"tp_size": RANKS}}))
    names = ("inference_address", "management_address", "metrics_address")
    lines = [f"{name}=http://127.0.0.1:{port}" for name, port in zip(names, ports[:3], strict=True)]
    lines += [f"grpc_inference_port={ports[3]}", f"grpc_management_port={ports[4]}", f"load_models={MODEL}"]
    lines += ["disable_token_authorization=true", "decode_input_request=false", "disable_system_metrics=true", "netty_client_threads=1"]
    lines += ["enable_model_api=false", "allowed_urls=^$", "metrics_mode=prometheus", f"metrics_config={directory}/run/metrics.yaml"]
    (directory / "config" / "config.properties").write_text("\n".join(lines))


@contextlib.contextmanager
def _starter(factory: pytest.TempPathFactory, wait_until: Callable[..., Any]) -> Iterator[Callable[..., Frontend]]:
    """Start frontends; with `ready` (the default) wait until its probe says so."""
    started: list[Frontend] = []

    def begin(*, ready: bool = True, handler: str = "echo_handler", **variables: str) -> Frontend:
        directory = factory.mktemp("f")
        ports = free_ports(6)
        _write_files(directory, ports, handler)
        frontend = Frontend(directory, ports, variables)
        started.append(frontend)
        if ready:
            wait_until("the model is ready or dead", lambda: frontend.ping() not in (None, 200) or frontend.probe("/readyz")[0] == 200)
            assert frontend.ping() == 200, frontend.log.read_text()
            assert set(frontend.ranks()) == set(range(RANKS))
        return frontend

    try:
        yield begin
    finally:
        for frontend in started:
            with contextlib.suppress(ProcessLookupError):
                frontend.process.send_signal(signal.SIGCONT)
            frontend.end()


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory, wait_until: Callable[..., Any]) -> Iterator[Callable[..., Frontend]]:
    """Start frontends of one test."""
    with _starter(tmp_path_factory, wait_until) as begin:
        yield begin


@pytest.fixture(scope="module")
def start_module(tmp_path_factory: pytest.TempPathFactory, wait_until: Callable[..., Any]) -> Iterator[Callable[..., Frontend]]:
    """Start frontends that the tests of a module share."""
    with _starter(tmp_path_factory, wait_until) as begin:
        yield begin


PATIENCE_SECONDS = 60


class StubTorchServe:
    """TorchServe's three addresses as far as the front door sees them. Records requests.

    `gate` holds the end of every answer, `is_ready` is what the management address says.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.is_ready = True
        self.servers = [_Server(self) for _ in range(3)]
        self.ports = [int(server.server_address[1]) for server in self.servers]
        self._threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}) for server in self.servers]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self.gate.set()
        for server, thread in zip(self.servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, stub: StubTorchServe) -> None:
        self.stub = stub
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        stub = self.server.stub
        if self.path == "/ping":
            self._whole(200, {"status": "Healthy"})
        elif self.path.startswith("/models/"):
            text = json.dumps([{"workers": [{"status": "READY" if stub.is_ready else "UNLOADING"}]}])
            self._answer(200, text.encode(), {"content-type": "application/json"})
        elif self.path == "/metrics":
            self._answer(200, b"ts_queue_latency 1\n", {"content-type": "text/plain"})
        else:
            self._record(b"")
            self._whole(200, {"object": "list"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self._record(body)
        stub = self.server.stub
        if b'"stream"' not in body:
            stub.gate.wait(PATIENCE_SECONDS)
            self._whole(200, {"object": "chat.completion"})
            return
        self.send_response(200)
        for name, value in {"content-type": "text/event-stream", "transfer-encoding": "chunked", "ts_stream_next": "true"}.items():
            self.send_header(name, value)
        self.end_headers()
        self._chunk(b"data: one\n\n")
        stub.gate.wait(PATIENCE_SECONDS)
        self._chunk(b"data: two\n\n")
        self._chunk(b"")

    def _record(self, body: bytes) -> None:
        self.server.stub.requests.append({"method": self.command, "path": self.path, "headers": dict(self.headers.items()), "body": body})

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _whole(self, status: int, document: object) -> None:
        self._answer(status, json.dumps(document).encode(), {"content-type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def torchserve() -> Iterator[StubTorchServe]:
    stub = StubTorchServe()
    yield stub
    stub.close()
