"""Every rendered example in front of the real frontend: it never rejects a configuration, so it is asked what it understood.

The files, the environment and the command are those of a pod; only the ranks behind the frontend are stubs, and so is
the `nvidia-smi` with which it counts devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from lmd_operator.api.parse import parse
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.local.container import materialise
from lmd_operator.local.ports import free_ports
from lmd_operator.planning.plan import Plan
from lmd_operator.planning.startup import UNKNOWN
from lmd_operator.rendering.files import FRONTEND_QUEUE_SIZE
from lmd_operator.rendering.front_door import REFUSED_TOGETHER
from lmd_operator.rendering.layout import Layout
from lmd_operator.resources.desired import Desired, desired
from lmd_operator.settings import Settings
from lmd_worker import bootstrap, metrics, mounts
from lmd_worker.environment import Environment

pytestmark = pytest.mark.model

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXAMPLES = sorted((ROOT / "crds" / "examples").glob("*.yaml"))
CPU_ONLY = ROOT / "tests" / "scenarios" / "one-rank-on-cpu.yaml"
ACCELERATE = ROOT / "tests" / "scenarios" / "accelerate.yaml"
IN_STAGES = [ROOT / "tests" / "scenarios" / f"{name}.yaml" for name in ("pipeline", "pipeline-tensor")]
PARALLEL_TYPES = {"Accelerate": "custom", "Pipeline": "pp", "PipelineTensor": "pptp"}
ZERO_INFERENCE = ROOT / "tests" / "scenarios" / "zero-inference.yaml"
STUB = HERE / "stub_ranks.py"
MARK = "LMD_RENDERED_CONFIG_TEST"
"""In the environment of every process of one run, also of orphans."""
TERMINATED = 143
WAIT_SECONDS = 120
HANDLER = '''
class Stub:
    """Loads nothing."""

    def initialize(self, context):
        print(f"stub loaded {context.model_yaml_config['handler']['strategy']}\\n", end="", flush=True)

    def handle(self, data, context):
        return ["stub"] * len(data)
'''


@dataclasses.dataclass
class Frontend:
    """The JVM in front of one object's rendered files."""

    owner: LargeModelDeployment
    built: Desired
    layout: Layout
    directory: Path
    process: subprocess.Popen[bytes]

    def request(self, method: str, path: str) -> tuple[int, Any]:
        """Ask the management port; (0, None) while nobody listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.layout.management_port, timeout=WAIT_SECONDS)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (ConnectionError, http.client.HTTPException):
            return 0, None
        finally:
            connection.close()

    def model(self) -> dict[str, Any]:
        """What the frontend says of the model; empty until it knows it."""
        status, answer = self.request("GET", f"/models/{self.owner.model_name}")
        return answer[0] if status == http.client.OK else {}

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log()
        return [worker["status"] for worker in self.model().get("workers", [])] == ["READY"]

    def record(self, launcher: str) -> dict[str, Any]:
        """How the frontend called `torchrun` or `python`; empty when it did not."""
        file = self.directory / f"{launcher}.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def complaints(self) -> list[str]:
        """Lines of the frontend itself from WARN on; its own loggers write nothing below."""
        return [line for line in self.log().splitlines() if {"WARN", "ERROR", "FATAL"} & set(line.split()[1:2])]

    def listeners(self) -> dict[int, set[str]]:
        """Addresses the JVM listens on, by port."""
        found: dict[int, set[str]] = {}
        for connection in psutil.Process(self.process.pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found.setdefault(connection.laddr.port, set()).add(connection.laddr.ip.removeprefix("::ffff:"))
        return found

    def end(self) -> None:
        """Ask the JVM to end, then kill whatever carries this run's mark."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=20)
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait(timeout=WAIT_SECONDS)

    def family(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == str(self.directory):
                    found.append(process)
        return found


def _layout(directory: Path, ports: list[int]) -> Layout:
    others = {"api_port", "operations_port", "probes_port"}
    names = [field.name for field in dataclasses.fields(Layout) if field.name.endswith("_port") and field.name not in others]
    given = dict(zip(names, ports, strict=True))
    return Layout(root=str(directory), models=f"{directory}/models", shared_memory=f"{directory}/shm", **given)


def _launcher(directory: Path, name: str, *, real: bool) -> Path:
    """Write an executable that records how it is called and then is the stub, or the real torchrun."""
    file = directory / "bin" / name
    file.parent.mkdir(exist_ok=True)
    record = f'"{directory / name}.json"'
    if real:
        code = f"import sys, pathlib; sys.path.insert(0, {str(HERE)!r}); import stub_ranks; "
        code += "stub_ranks.leave_record(pathlib.Path(sys.argv[1]), sys.argv[2:])"
        lines = [f'"{sys.executable}" -c "{code}" {record} "$@"', f'exec "{Path(sys.executable).parent / name}" "$@"']
    else:
        lines = [f'exec "{sys.executable}" "{STUB}" {record} "$@"']
    file.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


def _devices(directory: Path, count: int) -> None:
    """Write the `nvidia-smi` of a node with this many GPUs: the frontend counts them by index and asks for each one's use."""
    file = directory / "bin" / "nvidia-smi"
    indices = "".join(f"\\n{index}" for index in range(count))
    use = "utilization.gpu [%%], utilization.memory [%%], memory.used [MiB]\\n0 %%, 0 %%, 1 MiB"
    file.write_text(f"#!/bin/sh\ncase \"$*\" in *index*) printf 'index{indices}\\n' ;; *) printf '{use}\\n' ;; esac\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def _stub_handler(directory: Path) -> Path:
    """Write a module of the rendered handler's name and return what must be on PYTHONPATH."""
    package = directory / "stub" / "lmd_worker"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "handler.py").write_text(HANDLER)
    return package.parent


@pytest.fixture
def begin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Frontend]]:
    """Start a frontend on an object's rendered files; `change` may spoil the model configuration first."""
    started: list[Frontend] = []

    def start(manifest: Path, *, real_ranks: bool = False, change: Callable[[str], str] = str) -> Frontend:
        directory = tmp_path_factory.mktemp("r")
        owner = parse(yaml.safe_load(manifest.read_text()))
        layout = _layout(directory, free_ports(5))
        built = desired(owner, Settings(java_heap="256m"), layout)
        container = materialise(built)
        environment = Environment.from_variables(container.environment)
        model_config = environment.model_directory / mounts.MODEL_CONFIG
        model_config.write_text(change(model_config.read_text()))
        variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(_stub_handler(directory)), **container.environment}
        variables = {**bootstrap.process_variables(environment, variables), MARK: str(directory)}
        _launcher(directory, "torchrun", real=real_ranks)
        python = _launcher(directory, "python", real=False)
        variables["PATH"] = f"{python.parent}:{variables['PATH']}"
        _devices(directory, built.plan.gpus_per_replica)
        for path in (environment.log_location, environment.metrics_location, directory / "empty"):
            path.mkdir(parents=True, exist_ok=True)
        environment.run_directory.mkdir(parents=True, exist_ok=True)
        metrics.write_config(bootstrap.site_packages() / "ts", environment.run_directory)
        java = mounts.find_java(variables)
        assert java is not None
        command = bootstrap.command(environment, java, directory / "empty")
        command[command.index(sys.executable)] = str(python)
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                command, env=variables, cwd=directory / "empty", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        started.append(Frontend(owner, built, layout, directory, process))
        return started[-1]

    yield start
    for frontend in started:
        frontend.end()


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """The address of a server from which nothing must ever be fetched, and the paths that were."""
    fetched: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", fetched
        server.shutdown()
        thread.join()


def understood(frontend: Frontend) -> dict[str, Any]:
    """What the frontend should report, from the object alone."""
    spec, plan = frontend.owner.spec, frontend.built.plan
    return {
        "modelName": frontend.owner.model_name,
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": spec.engine.concurrency + spec.engine.torch_serve.job_queue_size + REFUSED_TOGETHER,
        "maxBatchDelay": 1,
        "responseTimeout": spec.engine.torch_serve.response_timeout_seconds,
        "startupTimeout": spec.engine.torch_serve.startup_timeout_seconds or UNKNOWN.seconds,
        "maxRetryTimeoutInSec": 0,
        "deviceType": "cpu" if plan.gpus_per_replica == 0 else "gpu",
        "continuousBatching": True,
        "useVenv": False,
        "useJobTicket": False,
        "jobQueueStatus": {"remainingCapacity": FRONTEND_QUEUE_SIZE, "pendingRequests": 0},
        "parallelType": PARALLEL_TYPES.get(plan.strategy, "tp" if plan.ranks > 1 else ""),
        "parallelLevel": plan.ranks if is_parallel(plan) else 0,
    }


def is_parallel(plan: Plan) -> bool:
    """Whether the frontend is told that the model is placed on devices by others than itself."""
    return plan.ranks > 1 or plan.strategy == "Accelerate"


def arguments(frontend: Frontend) -> list[str]:
    """The exact command line after `torchrun`, or after `python` for one rank."""
    ranks, port = frontend.built.plan.ranks, 29500 if is_parallel(frontend.built.plan) else 9000
    packages = bootstrap.site_packages()
    torchrun = [
        *("--nnodes", "1", "--nproc-per-node", str(ranks)),
        *("--log-dir", f"{frontend.layout.temp}/logs/torchelastic_ts"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
        *("--rdzv-id", f"{frontend.owner.model_name}_{port}", "--max-restarts", "1"),
    ]
    return [
        *(torchrun if ranks > 1 else []),
        str(packages / "ts" / "model_service_worker.py"),
        *("--sock-type", "unix", "--sock-name", f"{frontend.layout.temp}/.ts.sock.{port}"),
        *("--metrics-config", f"{frontend.layout.run}/metrics.yaml"),
    ]


def selection(described: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    return {key: described.get(key) for key in wanted}


@pytest.mark.parametrize("manifest", [*EXAMPLES, CPU_ONLY, ACCELERATE, *IN_STAGES, ZERO_INFERENCE], ids=lambda path: path.stem)
def test_the_frontend_understands_an_object_as_it_was_meant(begin, wait_until, elsewhere, manifest: Path) -> None:
    frontend = begin(manifest)
    wait_until("the worker is ready", frontend.is_ready)

    described, wanted = frontend.model(), understood(frontend)
    assert selection(described, wanted) == wanted
    assert frontend.complaints() == []

    ranks, gpus = frontend.built.plan.ranks, frontend.built.plan.gpus_per_replica
    assert [worker["gpu"] for worker in described["workers"]] == [gpus > 0]
    started = frontend.record("torchrun" if ranks > 1 else "python")
    assert not frontend.record("python" if ranks > 1 else "torchrun")
    assert started["arguments"] == arguments(frontend)
    assert started["variables"]["OMP_NUM_THREADS"] == str(frontend.built.plan.threads_per_rank)
    devices = ",".join(map(str, range(gpus))) if is_parallel(frontend.built.plan) and gpus else None
    assert started["variables"].get("CUDA_VISIBLE_DEVICES") == devices
    assert started["variables"]["TEMP"] == frontend.layout.temp

    layout = frontend.layout
    private = {layout.inference_port, layout.metrics_port, layout.management_port, layout.grpc_inference_port, layout.grpc_management_port}
    wait_until("every port is open", lambda: frontend.listeners().keys() >= private)
    addresses = {port: "loopback" if found == {"127.0.0.1"} else "all" for port, found in frontend.listeners().items()}
    assert addresses == dict.fromkeys(private, "loopback")

    address, fetched = elsewhere
    for path in (f"/models?url={address}/evil.mar", f"/workflows?url={address}/evil.war", "/workflows?url=file:///etc/hostname"):
        assert frontend.request("POST", path)[0] in range(400, 500), path
    assert frontend.request("DELETE", f"/models/{frontend.owner.model_name}")[0] == http.client.METHOD_NOT_ALLOWED
    assert fetched == []
    assert frontend.is_ready()


def test_real_ranks_start_from_the_rendered_files(begin, wait_until) -> None:
    """The stub takes any command line; torchrun does not."""
    frontend = begin(ROOT / "crds" / "examples" / "smollm2.yaml", real_ranks=True)
    wait_until("the worker is ready", frontend.is_ready)
    assert frontend.record("torchrun")["arguments"] == arguments(frontend)
    ranks = frontend.built.plan.tensor
    wait_until("every rank's word is in the log", lambda: frontend.log().count("stub loaded DeepSpeed") == ranks)
    frontend.process.send_signal(signal.SIGTERM)
    assert frontend.process.wait(timeout=WAIT_SECONDS) == TERMINATED
    wait_until("no rank is left", lambda: not frontend.family())


def test_the_frontend_takes_nonsense_with_a_warning_or_none(begin, wait_until) -> None:
    """Each of these runs at another configuration than asked; the checks above must be able to see it."""
    changes = {
        "batchSize: 26": 'batchSize: "26"',
        "deviceType: cpu": "deviceType: tpu",
        "responseTimeout: 45": "responsetimeout: 45",
        f"jobQueueSize: {FRONTEND_QUEUE_SIZE}": "jobQueueSize: 7.0",
        "continuousBatching: true": 'continuousBatching: "true"',
    }

    def spoil(text: str) -> str:
        for right, wrong in changes.items():
            assert right in text
            text = text.replace(right, wrong)
        return text + "parallelType: tq\ntorchrun:\n  nproc_per_node: 2\n"

    frontend = begin(CPU_ONLY, change=spoil)
    wait_until("the worker is ready", frontend.is_ready)
    described, wanted = frontend.model(), understood(frontend)
    differing = {key for key in wanted if described.get(key) != wanted[key]}
    assert differing == {"batchSize", "responseTimeout", "jobQueueStatus", "continuousBatching"}
    log = "\n".join(frontend.complaints())
    for complaint in ("batchSize: 26", "DeviceType", "jobQueueSize: 7.0", "continuousBatching: true", "ParallelType:tq", "nproc_per_node"):
        assert complaint in log, complaint
    assert "responsetimeout" not in log, "an unknown key is dropped without a word"
