"""The kubelet's commands against a web server of our own on loopback."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lmd_operator.local.ports import free_ports
from lmd_worker import probes, properties, rundir
from lmd_worker.environment import Environment, seconds
from lmd_worker.probes import Finding

MODEL_PATH = "/models/m"


class FakeFrontend:
    """Both addresses of TorchServe in one; tests change what it answers. A callable answers differently each time."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"/ping": (200, "{}"), MODEL_PATH: self.model("READY")}
        self.asked: list[str] = []
        frontend = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                frontend.asked.append(self.path)
                answer = frontend.answers[self.path]
                status, text = answer() if callable(answer) else answer
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]

    @staticmethod
    def model(status: str, queued: int = 0) -> tuple[int, str]:
        return 200, json.dumps([{"workers": [{"id": "29500", "status": status}], "jobQueueStatus": {"pendingRequests": queued}}])


@pytest.fixture
def frontend() -> Iterator[FakeFrontend]:
    fake = FakeFrontend()
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    fake.server.shutdown()
    thread.join()
    fake.server.server_close()


@pytest.fixture
def variables(tmp_path: Path, frontend: FakeFrontend) -> dict[str, str]:
    address = f"http://127.0.0.1:{frontend.port}"
    (tmp_path / "config.properties").write_text(f"# ours\ninference_address={address}\nmanagement_address={address}\n")
    return {"LMD_MODEL_NAME": "m", "LMD_CONFIG_DIR": str(tmp_path), "LMD_RUN_DIR": str(tmp_path / "run"), "LMD_DRAIN_LAG_SECONDS": "0"}


@pytest.fixture
def environment(variables: dict[str, str]) -> Environment:
    return Environment.from_variables(variables)


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        pytest.param(FakeFrontend.model("READY"), Finding(True, "workers of m: READY"), id="a ready worker"),
        pytest.param(FakeFrontend.model("UNLOADING"), Finding(False, "workers of m: UNLOADING"), id="a loading worker"),
        pytest.param((200, '[{"workers": []}]'), Finding(False, "workers of m: none"), id="no worker: the model was refused"),
        pytest.param((404, "{}"), Finding(False, "/models/m answered 404"), id="no such model"),
        pytest.param((200, "READY"), Finding(False, "/models/m answered no list of one model"), id="no JSON"),
        pytest.param((200, "[]"), Finding(False, "/models/m answered no list of one model"), id="no model"),
        pytest.param((200, "[1]"), Finding(False, "/models/m answered no model"), id="no description"),
    ],
)
def test_ready_means_a_worker_that_says_so(frontend: FakeFrontend, environment: Environment, answer: Any, finding: Finding) -> None:
    frontend.answers[MODEL_PATH] = answer
    assert probes.ready(environment) == finding


def test_a_draining_pod_is_not_ready_whatever_its_worker_says(frontend: FakeFrontend, environment: Environment) -> None:
    rundir.set_draining(environment.run_directory)
    assert probes.ready(environment) == Finding(False, "draining")
    assert frontend.asked == []


@pytest.fixture
def server(environment: Environment) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like the frontend and is noted as it."""
    program = "import sys; sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", program, "org.pytorch.serve.ModelServer"], stdin=subprocess.PIPE)
    rundir.clear(environment.run_directory)
    rundir.write_frontend(environment.run_directory, process.pid)
    yield process
    process.communicate()


class Clock:
    """Time that passes only in sleeps."""

    def __init__(self, on_sleep: Callable[[int], None] = lambda _: None) -> None:
        self.now, self.sleeps, self.on_sleep = 0.0, 0, on_sleep

    def sleep(self, duration: float) -> None:
        self.now += duration
        self.sleeps += 1
        self.on_sleep(self.sleeps)

    def __call__(self) -> float:
        return self.now


def test_a_rank_that_dies_while_loading_ends_the_container(
    frontend: FakeFrontend, environment: Environment, server: subprocess.Popen[bytes]
) -> None:
    """No liveness is asked before the start-up probe has succeeded: a container whose model was refused stayed for half an hour."""
    frontend.answers[MODEL_PATH] = FakeFrontend.model("UNLOADING")
    clock = Clock()
    assert probes.started(environment, sleep=clock.sleep, clock=clock) == Finding(False, "workers of m: UNLOADING")
    assert clock.now == probes.STARTED_SECONDS
    assert server.poll() is None, "it loads"
    frontend.answers["/ping"] = (500, "{}")
    assert probes.started(environment) == Finding(False, "/ping answered 500")
    assert server.wait(30) == -signal.SIGTERM
    assert probes.started(environment) == Finding(False, "/ping answered 500"), "it is gone already"


def test_a_loaded_model_and_a_frontend_that_says_nothing_end_nobody(
    frontend: FakeFrontend, environment: Environment, server: subprocess.Popen[bytes]
) -> None:
    assert probes.started(environment) == Finding(True, "workers of m: READY")
    frontend.server.server_close()
    clock = Clock()
    assert not probes.started(environment, sleep=clock.sleep, clock=clock).good
    assert server.poll() is None


def test_a_model_that_is_loaded_while_a_probe_waits_is_told_at_once(frontend: FakeFrontend, environment: Environment) -> None:
    """Two seconds from one probe to the next were two seconds that a loaded model got no requests."""
    frontend.answers[MODEL_PATH] = FakeFrontend.model("UNLOADING")

    def load(_: int) -> None:
        frontend.answers[MODEL_PATH] = FakeFrontend.model("READY")

    clock = Clock(load)
    assert probes.started(environment, sleep=clock.sleep, clock=clock) == Finding(True, "workers of m: READY")
    assert clock.now == probes.STARTED_POLL_SECONDS


def test_a_process_that_only_has_the_number_of_the_frontend_is_not_ended(frontend: FakeFrontend, environment: Environment) -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as other:
        rundir.clear(environment.run_directory)
        rundir.write_frontend(environment.run_directory, other.pid)
        frontend.answers |= {"/ping": (500, "{}"), MODEL_PATH: FakeFrontend.model("UNLOADING")}
        probes.started(environment)
        assert other.poll() is None


@pytest.mark.parametrize(("status", "good"), [(200, True), (500, False)])
def test_alive_is_ping(frontend: FakeFrontend, environment: Environment, status: int, good: bool) -> None:
    frontend.answers["/ping"] = (status, "")
    assert probes.alive(environment) == Finding(good, f"/ping answered {status}")


def test_a_dead_rank_leaves_last_words_unless_there_are_some(frontend: FakeFrontend, variables: dict[str, str], tmp_path: Path) -> None:
    """The launcher ends the survivors of a killed rank before they can speak, and the status told a line of the log instead."""
    words = tmp_path / "words"
    told = Environment.from_variables({**variables, "LMD_TERMINATION_MESSAGE_PATH": str(words)})
    probes.alive(told)
    assert not words.exists()
    frontend.answers["/ping"] = (500, "{}")
    probes.alive(told)
    assert words.read_text() == "A rank has died (/ping answered 500); all ranks must restart.\n"
    words.write_text("Rank 1: out of memory.\n")
    probes.alive(told)
    assert words.read_text() == "Rank 1: out of memory.\n"


def test_a_container_that_is_ended_while_its_model_loads_says_so_unless_it_has_said_something(
    frontend: FakeFrontend, variables: dict[str, str], tmp_path: Path
) -> None:
    """The kubelet's start-up probe ended it, and the status told that a rank had died."""
    words = tmp_path / "words"
    told = Environment.from_variables({**variables, "LMD_TERMINATION_MESSAGE_PATH": str(words), "LMD_DRAIN_SECONDS": "0"})
    rundir.clear(told.run_directory)
    began = told.run_directory / "began"
    os.utime(began, (began.stat().st_atime, began.stat().st_mtime - 1800))
    probes.drain(told, variables)
    assert not words.exists(), "it is loaded"
    frontend.answers[MODEL_PATH] = FakeFrontend.model("UNLOADING")
    probes.drain(told, variables)
    assert not words.exists(), "its pod is going"
    rundir.clear(told.run_directory)
    os.utime(began, (began.stat().st_atime, began.stat().st_mtime - 1800))
    probes.drain(told, {**variables, "LMD_DRAIN_SECONDS": "0"})
    assert words.read_text() == "StartupTimeout: the model was not loaded 1800 s after the start.\n"
    words.write_text("Rank 1: out of memory.\n")
    rundir.clear(told.run_directory)
    probes.drain(told, {**variables, "LMD_DRAIN_SECONDS": "0"})
    assert words.read_text() == "Rank 1: out of memory.\n"


def test_a_frontend_that_is_gone_is_neither_ready_nor_alive(tmp_path: Path) -> None:
    environment = Environment.from_variables({"LMD_MODEL_NAME": "m", "LMD_CONFIG_DIR": str(tmp_path), "LMD_RUN_DIR": str(tmp_path / "run")})
    config = tmp_path / "config.properties"
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        config.write_text(f"inference_address={address}\nmanagement_address={address}\n")
        assert probes.ready(environment) == Finding(False, f"{address}{MODEL_PATH}: Connection refused")
        assert probes.alive(environment) == Finding(False, f"{address}/ping: Connection refused")
    config.unlink()
    assert probes.alive(environment) == Finding(False, f"reading {config}: No such file or directory")
    config.write_text("inference_address=https://x")
    assert probes.alive(environment).line == "config.properties: inference_address is 'https://x'; give http://127.0.0.1:PORT."


def test_a_drain_waits_for_what_runs_and_for_what_is_queued(
    frontend: FakeFrontend, environment: Environment, variables: dict[str, str]
) -> None:
    rundir.write_in_flight(environment.run_directory, 2)
    frontend.answers[MODEL_PATH] = FakeFrontend.model("READY", queued=1)

    def later(sleeps: int) -> None:
        assert rundir.is_draining(environment.run_directory)
        if sleeps == 4:
            rundir.write_in_flight(environment.run_directory, 0)
        if sleeps == 6:
            frontend.answers[MODEL_PATH] = FakeFrontend.model("READY")

    clock = Clock(later)
    variables["LMD_DRAIN_LAG_SECONDS"] = "3"
    assert probes.drain(environment, variables, sleep=clock.sleep, clock=clock) == Finding(True, "drained")
    assert clock.now == pytest.approx(3 + 7 * probes.DRAIN_POLL_SECONDS), "the lag, five looks with requests, two of three without"


def test_a_request_between_two_looks_begins_the_count_anew(
    frontend: FakeFrontend, environment: Environment, variables: dict[str, str]
) -> None:
    queued = iter([0, 0, 1, 0, 0, 0, 9])
    frontend.answers[MODEL_PATH] = lambda: FakeFrontend.model("READY", next(queued))
    clock = Clock()
    assert probes.drain(environment, variables, sleep=clock.sleep, clock=clock) == Finding(True, "drained")
    assert next(queued) == 9


def test_a_drain_ends_when_its_time_is_over(frontend: FakeFrontend, environment: Environment, variables: dict[str, str]) -> None:
    rundir.write_in_flight(environment.run_directory, 3)
    clock = Clock()
    finding = probes.drain(environment, {**variables, "LMD_DRAIN_SECONDS": "5"}, sleep=clock.sleep, clock=clock)
    assert finding == Finding(True, "drain time is over: requests left=3")
    assert 5 <= clock.now < 6


def test_a_drain_before_a_liveness_restart_leaves_no_flag(
    frontend: FakeFrontend, environment: Environment, variables: dict[str, str]
) -> None:
    # a flag left behind once kept the restarted container unready for ever
    frontend.answers["/ping"] = (500, "")
    clock = Clock()
    assert probes.drain(environment, variables, sleep=clock.sleep, clock=clock).good
    assert clock.sleeps == 0
    assert not rundir.is_draining(environment.run_directory)


def test_a_frontend_that_dies_during_a_drain_ends_it(frontend: FakeFrontend, environment: Environment, variables: dict[str, str]) -> None:
    rundir.write_in_flight(environment.run_directory, 3)

    def later(_: int) -> None:
        frontend.answers.update({"/ping": (500, ""), MODEL_PATH: (500, "")})

    clock = Clock(later)
    assert probes.drain(environment, variables, sleep=clock.sleep, clock=clock) == Finding(True, "drained")


@pytest.mark.parametrize("text", ["x", "-1", "inf", "nan"])
def test_a_duration_is_a_number_of_seconds(text: str) -> None:
    with pytest.raises(ValueError, match=f"^X is '{text}'; give a number of seconds, 0 or more.$"):
        seconds({"X": text}, "X", 1.0)
    assert seconds({"X": ""}, "X", 1.0) == 1.0
    assert seconds({"X": "2.5"}, "X", 1.0) == 2.5


def test_commands_end_with_their_finding(frontend: FakeFrontend, environment: Environment, variables: dict[str, str]) -> None:
    def run(*arguments: str) -> tuple[int, str, bool]:
        done = subprocess.run([sys.executable, "-m", "lmd_worker", *arguments], env=variables, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, "usage: lmd-worker" in done.stderr

    assert run("started") == (0, "workers of m: READY\n", False)
    assert run("drain") == (0, "drained\n", False)
    assert run() == run("fly") == run("started", "now") == (2, "", True)
    assert run("--help")[0] == 0
    frontend.answers["/ping"] = (500, "")
    rundir.clear(environment.run_directory)
    frontend.answers[MODEL_PATH] = FakeFrontend.model("UNLOADING")
    assert run("started") == (1, "/ping answered 500\n", False)


def test_the_start_up_probe_imports_no_heavy_library() -> None:
    program = (
        "import lmd_worker.__main__, lmd_worker.probes, sys; print(sorted({'pydantic', 'yaml', 'torch', 'http.client'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.fixture
def frontend_process(variables: dict[str, str], tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process that starts the probe server and then becomes another program, as `serve` does; and the port."""
    port = free_ports(1)[0]
    become = "import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'import sys; sys.stdin.read()'])"
    program = f"import os; from lmd_worker import probe_server; probe_server.start('127.0.0.1:{port}', os.environ); {become}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", program], env=variables, stdin=subprocess.PIPE, stderr=log)
    yield process, port
    process.communicate()


def _ask(port: int, path: str) -> tuple[int, str]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def test_probes_are_answered_over_http_until_the_frontend_ends(
    frontend: FakeFrontend,
    environment: Environment,
    frontend_process: tuple[subprocess.Popen[bytes], int],
    tmp_path: Path,
    wait_until: Callable[..., Any],
) -> None:
    process, port = frontend_process
    wait_until("the probe server listens", lambda: _listens(port))
    assert _ask(port, "/readyz") == (200, "workers of m: READY\n")
    assert _ask(port, "/livez") == (200, "/ping answered 200\n")
    assert _ask(port, "/")[0] == 404
    rundir.set_draining(environment.run_directory)
    assert _ask(port, "/readyz") == _ask(port, "/readyz") == (503, "draining\n")
    frontend.answers["/ping"] = (500, "")
    assert _ask(port, "/livez") == (503, "/ping answered 500\n")
    frontend.answers["/ping"] = (200, "")
    assert _ask(port, "/livez")[0] == 200
    assert (tmp_path / "log").read_text().splitlines() == [
        "lmd-worker: not ready: draining",
        "lmd-worker: not alive: /ping answered 500",
        "lmd-worker: alive: /ping answered 200",
    ], "one line a change, however often it is asked"
    process.communicate()
    wait_until("the probe server has ended", lambda: not _listens(port))


def test_a_slow_client_delays_no_probe(frontend_process: tuple[subprocess.Popen[bytes], int], wait_until: Callable[..., Any]) -> None:
    _, port = frontend_process
    wait_until("the probe server listens", lambda: _listens(port))
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"GET /livez")
        assert _ask(port, "/livez") == (200, "/ping answered 200\n")


def test_properties_are_read_as_java_does() -> None:
    text = "#c\n! c\n\n a = 1 \nb=x=y\na=2\n"
    assert properties.parse(text) == {"a": "2", "b": "x=y"}
    assert properties.address({}, "management_address") == ("127.0.0.1", 8081)


def test_in_flight_is_none_until_written_and_cleared_with_all_the_rest(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert rundir.read_in_flight(directory) == 0
    rundir.write_in_flight(directory, 7)
    rundir.set_draining(directory)
    (directory / rundir.RANK_REPORT).touch()
    assert rundir.read_in_flight(directory) == 7
    rundir.clear(directory)
    assert [path.name for path in directory.iterdir()] == [rundir.BEGAN]
    assert rundir.age_seconds(directory / "elsewhere") == 0
