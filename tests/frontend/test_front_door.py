"""The real HAProxy with the rendered configuration, in front of a stub of TorchServe."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmd_operator.api.parse import parse
from lmd_operator.local.ports import free_ports
from lmd_operator.rendering.layout import POD, Layout
from lmd_operator.resources.desired import desired
from lmd_operator.settings import Settings

ROOT = Path(__file__).parents[2]
MANIFESTS = sorted([*(ROOT / "crds" / "examples").glob("*.yaml"), *(ROOT / "tests" / "scenarios").glob("*.yaml")])
WAIT_SECONDS = 60
CHAT = "/v1/chat/completions"
QUESTION = {"messages": [{"role": "user", "content": "?"}]}
CONCURRENCY = 2
PLACES = CONCURRENCY + 1 + 16
"""Of the worker: two requests run, one waits, and more are refused by it."""
QUEUE = 16

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not installed (Debian: apt-get install haproxy)")


class FrontDoor:
    """`lmd-worker front-door` and how to reach it."""

    def __init__(self, layout: Layout, keys: Path | None) -> None:
        self.layout = layout
        variables = {"LMD_CONFIG_DIR": layout.config, "LMD_RUN_DIR": layout.run}
        if keys:
            variables["LMD_API_KEYS_DIR"] = str(keys)
        self.log = Path(layout.root) / "front-door.log"
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "lmd_worker", "front-door"]
            self.process = subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log, start_new_session=True)

    @contextlib.contextmanager
    def open(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, port: int | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port or self.layout.api_port, timeout=WAIT_SECONDS)) as connection:
            connection.request(method, path, body, dict(headers or {}))
            with connection.getresponse() as response:
                yield response

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        raw = None if body is None else json.dumps(body).encode()
        with self.open(method, path, raw, headers) as response:
            return response.status, {name.lower(): value for name, value in response.getheaders()}, json.loads(response.read() or b"null")

    def operation(self, path: str) -> tuple[int, str]:
        try:
            with self.open("GET", path, port=self.layout.operations_port) as response:
                return response.status, response.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        lines = self.operation("/metrics")[1].splitlines()
        (value,) = [line.split()[-1] for line in lines if line.startswith(name) and 'proxy="torchserve"' in line and 'server="' not in line]
        return float(value)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(WAIT_SECONDS)


def until(what: str, condition: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited {WAIT_SECONDS} s for: {what}"
        time.sleep(0.05)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A Secret as the kubelet mounts it: files behind a link that is replaced when the Secret changes."""
    folder = tmp_path / "keys"
    folder.mkdir()
    return folder


def mount(keys: Path, **values: str) -> None:
    """Replace the content of the mounted Secret as the kubelet does."""
    version = keys / f"..{len(list(keys.iterdir()))}"
    version.mkdir()
    for name, value in values.items():
        (version / name).write_text(value)
        if not (keys / name).is_symlink():
            (keys / name).symlink_to(Path("..data") / name)
    link = keys / "..new"
    link.symlink_to(version.name)
    link.replace(keys / "..data")


@pytest.fixture
def begin(tmp_path: Path, torchserve) -> Iterator[Callable[..., FrontDoor]]:
    doors: list[FrontDoor] = []

    def start(*, keys: Path | None = None, ready: bool = True) -> FrontDoor:
        source = yaml.safe_load((ROOT / "crds" / "examples" / "smollm2.yaml").read_text())
        source["spec"]["engine"] |= {"concurrency": CONCURRENCY, "torchServe": {"jobQueueSize": 1}}
        if keys:
            source["spec"]["endpoint"] = {"apiKeysSecretRef": {"name": "keys"}}
        api, operations = free_ports(2)
        inference, management, metrics = torchserve.ports
        layout = Layout(
            root=str(tmp_path),
            api_port=api,
            operations_port=operations,
            inference_port=inference,
            management_port=management,
            metrics_port=metrics,
        )
        texts = desired(parse(source), Settings(), layout).files.texts
        Path(layout.config).mkdir(parents=True, exist_ok=True)
        (Path(layout.config) / "haproxy.cfg").write_text(texts["haproxy.cfg"])
        doors.append(FrontDoor(layout, keys))
        until("the front door answers", lambda: doors[-1].operation("/livez")[0] == 200)
        if ready:
            until("the worker is seen", lambda: doors[-1].operation("/readyz")[0] == 200)
        return doors[-1]

    yield start
    for door in doors:
        door.end()


@pytest.mark.parametrize("with_keys", [False, True], ids=["open", "with keys"])
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_haproxy_takes_every_configuration_without_a_warning(tmp_path: Path, manifest: Path, with_keys: bool) -> None:
    source = yaml.safe_load(manifest.read_text())
    if with_keys:
        source["spec"].setdefault("endpoint", {})["apiKeysSecretRef"] = {"name": "keys"}
    text = desired(parse(source), Settings(), POD).files.texts["haproxy.cfg"].replace(POD.run, str(tmp_path))
    (tmp_path / "api-keys").touch()
    path = tmp_path / "haproxy.cfg"
    path.write_text(text)
    checked = subprocess.run(["haproxy", "-c", "-f", str(path)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_v1_is_the_model_s_routes(begin, torchserve) -> None:
    door = begin()
    assert door.ask("POST", f"{CHAT}?api-version=1", QUESTION, authorization="Bearer sk-1")[0] == 200
    assert door.ask("GET", "/v1/models/org.name:1")[0] == 200
    (posted, got) = torchserve.requests
    assert posted["path"] == "/predictions/smollm2/1.0/v1/chat/completions"
    assert got["path"] == "/predictions/smollm2/1.0/v1/models/org.name:1"
    assert json.loads(posted["body"]) == QUESTION
    assert posted["headers"]["content-type"] == "application/json", "not what curl or urllib calls it"
    assert "authorization" not in {name.lower() for name in posted["headers"]}


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/ping", "/models", "/workflows", "/predictions/smollm2", "/v1/../../ping", "/v1/%2e%2e/x", "/v1//x", "/v1x/y"],
)
def test_nothing_else_can_be_reached(begin, torchserve, path: str) -> None:
    door = begin()
    for method in ("GET", "POST"):
        status, headers, body = door.ask(method, path)
        assert (status, headers["content-type"]) == (404, "application/json")
        assert set(body["error"]) == {"message", "type", "param", "code"}
    assert torchserve.requests == []


def test_methods_and_sizes_are_limited(begin, torchserve) -> None:
    door = begin()
    assert door.ask("DELETE", CHAT)[0] == 405
    with door.open("POST", CHAT, b" " * 2**16, {"Content-Length": str(9 * 2**20)}) as response:
        assert response.status == 413
        assert json.loads(response.read())["error"]["code"] == 413
    assert torchserve.requests == []


def test_a_stream_passes_piece_by_piece(begin, torchserve) -> None:
    door = begin()
    torchserve.gate.clear()
    with door.open("POST", CHAT, b'{"stream": true}') as response:
        assert response.readline() == b"data: one\n", "before the answer has ended"
        names = {name.lower() for name, _ in response.getheaders()}
        assert "ts_stream_next" not in names
        assert {response.getheader("cache-control"), response.getheader("x-accel-buffering")} == {"no-cache", "no"}
        torchserve.gate.set()
        assert response.read() == b"\ndata: two\n\n"


def test_a_full_queue_is_told_and_counted(begin, torchserve) -> None:
    door = begin()
    torchserve.gate.clear()
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(door.ask("POST", CHAT, QUESTION)[0])) for _ in range(PLACES + QUEUE)]
    for count, thread in enumerate(threads, start=1):
        thread.start()
        until(f"{count} requests", lambda count=count: door.metric("haproxy_backend_current_sessions") == count)
    # counted before it has a connection, or a place in the queue
    until("the worker's places are taken", lambda: len(torchserve.requests) >= PLACES)
    until("the others wait in the front door", lambda: door.metric("haproxy_backend_current_queue") == QUEUE)
    assert len(torchserve.requests) == PLACES
    status, headers, body = door.ask("POST", CHAT, QUESTION)
    assert (status, headers["retry-after"]) == (503, "5")
    assert body["error"]["type"] == "server_error"
    torchserve.gate.set()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert answers == [200] * len(threads)


def test_a_worker_that_is_not_ready_is_told(begin, torchserve) -> None:
    torchserve.is_ready = False
    door = begin(ready=False)
    until("it is seen", lambda: door.operation("/readyz")[0] == 503)
    until("it is down", lambda: door.ask("POST", CHAT, QUESTION)[0] == 503)
    status, headers, body = door.ask("POST", CHAT, QUESTION)
    assert (status, headers["retry-after"]) == (503, "5")
    assert set(body["error"]) == {"message", "type", "param", "code"}
    torchserve.is_ready = True
    until("it is up", lambda: door.operation("/readyz")[0] == 200)
    assert door.ask("POST", CHAT, QUESTION)[0] == 200


def test_metrics_of_torchserve_are_beside_those_of_the_front_door(begin) -> None:
    door = begin()
    assert door.operation("/metrics/torchserve") == (200, "ts_queue_latency 1\n")
    assert door.operation("/predictions/smollm2")[0] == 404


def test_the_report_of_the_ranks_is_beside_the_metrics_and_asks_for_no_key(begin, torchserve, keys: Path) -> None:
    mount(keys, first="sk-1")
    door = begin(keys=keys)
    asked = {"authorization": "Bearer sk-1"}
    for method, status in (("GET", 200), ("POST", 405)):
        with door.open(method, "/report?x=1", headers=asked, port=door.layout.operations_port) as response:
            assert response.status == status
    (request,) = torchserve.requests
    assert (request["method"], request["path"]) == ("GET", "/predictions/smollm2/1.0/lmd/report")
    assert "authorization" not in {name.lower() for name in request["headers"]}
    assert [door.operation(path)[0] for path in ("/report/", "/reports", "/lmd/report")] == [404] * 3
    assert door.ask("GET", "/report", authorization="Bearer sk-1")[0] == 404, "not where clients come in"


def test_a_handler_of_ones_own_has_no_report() -> None:
    source = yaml.safe_load((ROOT / "tests" / "scenarios" / "handler-in-an-archive.yaml").read_text())
    assert "report" not in desired(parse(source), Settings(), POD).files.texts["haproxy.cfg"]


def test_keys_are_asked_for_and_can_change_without_a_restart(begin, torchserve, keys: Path) -> None:
    mount(keys, first="sk-1\n", second="sk-2", empty="")
    door = begin(keys=keys)
    pid = door.process.pid

    def status(key: str | None) -> int:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return door.ask("POST", CHAT, QUESTION, **headers)[0]

    assert [status(key) for key in (None, "", "sk-3", "sk-1", "sk-2")] == [401, 401, 401, 200, 200]
    assert door.ask("GET", "/v1/models")[1]["www-authenticate"] == "Bearer"

    torchserve.gate.clear()
    with door.open("POST", CHAT, b'{"stream": true}', {"authorization": "Bearer sk-1"}) as stream:
        assert stream.readline() == b"data: one\n"
        mount(keys, first="sk-3")
        (keys / "second").unlink()
        torchserve.gate.set()
        assert stream.read() == b"\ndata: two\n\n", "a running answer is not cut"
    until("the new key counts", lambda: status("sk-3") == 200)
    assert [status(key) for key in ("sk-1", "sk-2")] == [401, 401]
    assert door.process.pid == pid
    assert "sk-" not in door.log.read_text()
    assert "sk-" not in (Path(door.layout.run) / "api-keys").read_text()


def drain(door: FrontDoor, inference_port: int, **variables: str) -> subprocess.Popen[str]:
    properties = Path(door.layout.config) / "config.properties"
    properties.write_text(f"inference_address=http://127.0.0.1:{inference_port}\nmanagement_address=http://127.0.0.1:{inference_port}\n")
    given = {"LMD_MODEL_NAME": "smollm2", "LMD_CONFIG_DIR": door.layout.config, "LMD_RUN_DIR": door.layout.run, **variables}
    command = [sys.executable, "-m", "lmd_worker", "drain"]
    return subprocess.Popen(command, env=os.environ | given, stdout=subprocess.PIPE, text=True)


def test_a_drain_lets_answers_end_and_takes_late_ones(begin, torchserve) -> None:
    door = begin()
    torchserve.gate.clear()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", door.layout.api_port, timeout=WAIT_SECONDS)) as kept:
        kept.request("GET", "/v1/models")
        first = kept.getresponse()
        first.read()
        assert first.getheader("connection") is None
        with door.open("POST", CHAT, b'{"stream": true}') as stream, drain(door, torchserve.ports[0], LMD_DRAIN_LAG_SECONDS="0") as hook:
            assert stream.readline() == b"data: one\n"
            until("unready", lambda: door.operation("/readyz") == (503, "draining\n"))
            assert door.operation("/livez")[0] == 200
            kept.request("GET", "/v1/models")
            late = kept.getresponse()
            late.read()
            assert (late.status, late.getheader("connection")) == (200, "close")
            assert hook.poll() is None, "an answer is running"
            torchserve.gate.set()
            assert stream.read() == b"\ndata: two\n\n"
            assert hook.communicate(timeout=WAIT_SECONDS)[0] == "drained\n"
            assert hook.returncode == 0


def test_a_flag_that_is_taken_away_ends_the_drain(begin) -> None:
    """A liveness restart runs the pre-stop hook too, and the front door outlives it."""
    door = begin()
    flag = Path(door.layout.run) / "draining"
    flag.touch()
    until("draining", lambda: door.operation("/readyz")[0] == 503)
    flag.unlink()
    until("ready again", lambda: door.operation("/readyz")[0] == 200)


def test_a_front_door_that_starts_while_the_pod_drains_knows_it(begin, tmp_path: Path) -> None:
    run = Path(Layout(root=str(tmp_path)).run)
    run.mkdir(parents=True)
    (run / "draining").touch()
    door = begin(ready=False)
    until("it drains", lambda: door.operation("/readyz") == (503, "draining\n"))


def test_it_ends_with_haproxy_and_by_sigterm(begin) -> None:
    door = begin()
    door.process.send_signal(signal.SIGTERM)
    assert door.process.wait(WAIT_SECONDS) in (0, 128 + signal.SIGTERM)


def test_a_missing_program_is_told(tmp_path: Path) -> None:
    variables = {"LMD_CONFIG_DIR": str(tmp_path), "LMD_RUN_DIR": str(tmp_path / "run"), "PATH": str(tmp_path)}
    command = [sys.executable, "-m", "lmd_worker", "front-door"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "lmd-worker front-door: haproxy: No such file or directory.\n")
