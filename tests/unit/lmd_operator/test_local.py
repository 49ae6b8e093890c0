"""The local run's checks before anything starts, and its clean-up; no server here."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml

from lmd_operator.api.parse import parse
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.errors import LocalRunError
from lmd_operator.local import devices, janitor, java, models, ports, serve
from lmd_operator.local.container import materialise
from lmd_operator.planning.plan import Plan
from lmd_operator.rendering.layout import Layout
from lmd_operator.resources.desired import desired
from lmd_operator.settings import Settings

EXAMPLES = Path(__file__).parents[3] / "crds" / "examples"
SCENARIOS = Path(__file__).parents[2] / "scenarios"
THREE_RANKS = Plan(strategy="DeepSpeed", tensor=3, gpus_per_replica=0, threads_per_rank=1, reason="")


def example(name: str) -> LargeModelDeployment:
    return parse(yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text()))


def test_a_busy_port_is_refused_with_the_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LocalRunError, match=rf"port {port} on 127.0.0.1 cannot be used \(Address already in use\).*--port"):
            ports.require_free(port)


def test_a_free_port_is_ours_until_its_server_listens() -> None:
    """Whoever was given a port could lose it to another server, or to any connection, before its own server had started."""
    first, second = ports.free_ports(2)
    assert first != second
    with socket.socket() as another, pytest.raises(OSError, match="Address already in use"):
        another.bind(("127.0.0.1", first))
    with socket.create_server(("127.0.0.1", first)), socket.create_connection(("127.0.0.1", first)):
        pass


def test_a_rank_gets_all_cores_of_the_machine_unless_the_object_says_how_many() -> None:
    """One rank computed on one core of many."""
    document = yaml.safe_load((SCENARIOS / "one-rank-on-cpu.yaml").read_text())
    document["spec"]["template"] = {}
    alone = serve.alone(parse(document))
    assert desired(alone, Settings()).plan.threads_per_rank == len(os.sched_getaffinity(0))
    document["spec"]["template"] = {"resources": {"requests": {"cpu": "7"}}}
    assert desired(serve.alone(parse(document)), Settings()).plan.threads_per_rank == 7


def test_a_missing_model_is_named_with_the_place_it_was_looked_for(tmp_path: Path) -> None:
    document = yaml.safe_load((EXAMPLES / "smollm2.yaml").read_text())
    document["spec"]["model"]["source"]["path"]["path"] = "/models/nothing"
    deployment = parse(document)
    with pytest.raises(LocalRunError, match="nothing: the directory does not exist"):
        models.models_directory(deployment, tmp_path, {}, print)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(LocalRunError, match=r"it has no config\.json"):
        models.models_directory(deployment, tmp_path, {}, print)


def test_a_claim_needs_a_local_directory(tmp_path: Path) -> None:
    with pytest.raises(LocalRunError, match="--claim models=DIRECTORY"):
        models.models_directory(example("llama-70b"), tmp_path, {}, print)
    (tmp_path / "llama-70b").mkdir()
    (tmp_path / "llama-70b" / "config.json").write_text("{}")
    assert models.models_directory(example("llama-70b"), tmp_path, {"models": tmp_path}, print) == tmp_path


def test_too_little_memory_is_refused_with_the_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 2**20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=512 * 2**20))
    with pytest.raises(LocalRunError, match=r"too little memory: 0.0 GiB of weights and 3 ranks need at least 0.9 GiB, and 0.5 GiB"):
        models.require_memory(tmp_path, THREE_RANKS)
    models.require_memory(tmp_path, THREE_RANKS, is_on_disk=True)
    models.require_memory(tmp_path, Plan(strategy="Accelerate", tensor=1, gpus_per_replica=0, threads_per_rank=1, reason=""))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
    models.require_memory(tmp_path, THREE_RANKS)


def test_missing_gpus_are_refused_instead_of_running_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchServe turns deviceType gpu into cpu without a word when it finds no GPU."""
    monkeypatch.setattr(devices, "count_gpus", lambda: 2)
    plan = Plan(strategy="DeepSpeed", tensor=8, gpus_per_replica=8, threads_per_rank=1, reason="")
    with pytest.raises(LocalRunError, match="asks for 8 GPUs and this machine has 2"):
        devices.require_devices(plan)
    devices.require_devices(THREE_RANKS)


@pytest.mark.parametrize(
    ("reported", "words"),
    [
        pytest.param([(2, 2)] * 4, "", id="as planned"),
        pytest.param([(4, 1)] * 4, "4 ranks at degree 2 in 2 stages were planned, but 4 reported, with degrees [4]", id="cut, not staged"),
        pytest.param([(2, 1)] * 4, "but 4 reported, with degrees [2]", id="stages that are not there"),
        pytest.param([(2, 2)] * 2, "but 2 reported", id="ranks that are not there"),
    ],
)
def test_ranks_must_report_the_stages_that_were_planned(tmp_path: Path, reported: list[tuple[int, int]], words: str) -> None:
    layout = Layout(root=str(tmp_path))
    built = desired(parse(yaml.safe_load((SCENARIOS / "pipeline-tensor.yaml").read_text())), Settings(), layout)
    held = {"parameter_bytes": 2**20, "model_bytes": 2**22, "device": "cpu"}
    Path(layout.run).mkdir(parents=True)
    ranks = [{"degree": degree, "pipeline": stages, **held} for degree, stages in reported]
    (Path(layout.run) / serve.RANKS_FILE).write_text(json.dumps({"ranks": ranks}))
    if not words:
        assert serve._verified(built, layout).startswith("4 ranks on cpu verified")
        return
    with pytest.raises(LocalRunError, match=re.escape(words)):
        serve._verified(built, layout)


def test_java_comes_from_the_package_when_there_is_none_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    directory = java.java_directory()
    assert directory is not None
    assert (Path(directory) / "java").exists()


def test_an_old_java_on_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert java.java_directory() not in (None, str(tmp_path))


def test_materialising_writes_the_rendered_bytes_where_a_pod_mounts_them(tmp_path: Path) -> None:
    layout = Layout(root=str(tmp_path))
    built = desired(example("smollm2"), Settings(), layout)
    container = materialise(built)
    store = tmp_path / "store" / "smollm2"
    assert (store / "model-config.yaml").read_text() == built.files.texts["model-config.yaml"]
    assert (store / "MAR-INF" / "MANIFEST.json").read_text() == built.files.texts["MANIFEST.json"]
    assert (tmp_path / "etc" / "lmd" / "config.properties").read_text() == built.files.texts["config.properties"]
    assert list(container.command) == ["lmd-worker", "serve"]
    assert container.environment["LOCAL_SIZE"] == "3"
    assert container.startup_seconds == 300


def test_a_local_run_differs_from_a_pod_in_paths_and_ports_only(tmp_path: Path) -> None:
    layout = Layout(root=str(tmp_path), inference_port=18080, management_port=18081, metrics_port=18082)
    local = desired(example("smollm2"), Settings(), layout).files.texts
    pod = desired(example("smollm2"), Settings()).files.texts
    assert {name for name in pod if pod[name] != local[name]} == {"config.properties", "haproxy.cfg"}


def test_the_janitor_ends_marked_processes_and_removes_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    sleeper = [sys.executable, "-c", "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"]
    environment = {**os.environ, janitor.MARK: str(folder)}
    with janitor.Janitor(folder, grace_seconds=0.2):
        process = subprocess.Popen(sleeper, env=environment, stdout=subprocess.PIPE, start_new_session=True)
        bystander = subprocess.Popen(sleeper, stdout=subprocess.PIPE, start_new_session=True)
        assert process.stdout is not None
        assert process.stdout.readline()
        assert bystander.stdout is not None
        assert bystander.stdout.readline()
    try:
        assert process.wait(timeout=30) < 0
        assert not folder.exists()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        process.stdout.close()
        bystander.stdout.close()
