"""What `serve` refuses, in which words, and the command line it becomes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmd_worker import bootstrap, mounts, rundir
from lmd_worker.environment import Environment

GOOD_CONFIG: dict[str, Any] = {
    "minWorkers": 1,
    "maxWorkers": 1,
    "maxRetryTimeoutInSec": 0,
    "continuousBatching": True,
    "deviceType": "cpu",
    "parallelType": "tp",
    "torchrun": {"nnodes": 1, "nproc-per-node": 2},
    "handler": {"model_path": "/models/m", "strategy": "DeepSpeed", "dtype": "float32", "concurrency": 8},
    "deepspeed": {"config": "ds-config.json"},
}
GOOD_PROPERTIES = {
    "inference_address": "http://127.0.0.1:8080",
    "management_address": "http://127.0.0.1:8081",
    "load_models": "m",
    "disable_token_authorization": "true",
    "decode_input_request": "false",
}
GOOD_MANIFEST = {"model": {"modelName": "m", "handler": "lmd_worker.handler", "configFile": "model-config.yaml"}}


class Container:
    """A directory tree and variables as a pod gives them, good until a test spoils something."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = root / "store" / "m"
        self.properties = root / "config" / "config.properties"
        (self.model / "MAR-INF").mkdir(parents=True)
        for name in ("config", "t", "bin"):
            (root / name).mkdir()
        self.config(**GOOD_CONFIG)
        self.manifest(GOOD_MANIFEST)
        (self.model / "ds-config.json").write_text('{"tensor_parallel": {"tp_size": 2}}')
        self.configure(**GOOD_PROPERTIES)
        self.java("17.0.1")
        self.variables = {
            "LMD_MODEL_NAME": "m",
            "LMD_MODEL_STORE": str(root / "store"),
            "LMD_CONFIG_DIR": str(root / "config"),
            "LMD_RUN_DIR": str(root / "run"),
            "LMD_PROBES_ADDRESS": "127.0.0.1:0",
            "LMD_JAVA_OPTIONS": "-Xmx64m -XX:+ExitOnOutOfMemoryError",
            "LMD_TERMINATION_MESSAGE_PATH": str(root / "last-words"),
            "LOCAL_SIZE": "2",
            "PATH": str(root / "bin"),
            "TEMP": str(root / "t"),
            "TS_CONFIG_FILE": "/elsewhere",
        }

    def config(self, **values: Any) -> None:
        (self.model / "model-config.yaml").write_text(yaml.safe_dump({**GOOD_CONFIG, **values}))

    def manifest(self, document: object) -> None:
        (self.model / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(document))

    def configure(self, **values: str) -> None:
        lines = [f"{key}={value}" for key, value in {**GOOD_PROPERTIES, **values}.items() if value]
        self.properties.write_text("\n".join(lines))

    def java(self, version: str) -> None:
        """A java that tells its version, or where it runs and with what."""
        file = self.root / "bin" / "java"
        file.write_text(
            f'#!/bin/sh\nif [ "$1" = -version ]; then echo \'openjdk version "{version}"\' >&2; exit 0; fi\n'
            'echo "$PWD"; echo "$PATH|$TEMP|$LOG_LOCATION|$METRICS_LOCATION|$TS_CONFIG_FILE"; for a; do echo "$a"; done\n'
        )
        file.chmod(0o755)

    def problems(self) -> list[str]:
        found = mounts.problems(Environment.from_variables(self.variables), self.variables)
        return [problem.replace(str(self.root), "ROOT") for problem in found]


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def test_a_good_container_has_no_problems(container: Container) -> None:
    assert container.problems() == []


SPOILT: list[tuple[Callable[[Container], object], str]] = [
    (
        lambda c: c.variables.update(LMD_MODEL_NAME=""),
        "LMD_MODEL_NAME is ''; set it to the model's name: letters, digits, '.', '_' and '-'.",
    ),
    (
        lambda c: c.variables.update(LMD_MODEL_NAME="../m"),
        "LMD_MODEL_NAME is '../m'; set it to the model's name: letters, digits, '.', '_' and '-'.",
    ),
    (lambda c: shutil.rmtree(c.model), "ROOT/store/m: no such directory; mount the rendered model directory there."),
    (
        lambda c: (c.model / "MAR-INF" / "MANIFEST.json").unlink(),
        "reading ROOT/store/m/MAR-INF/MANIFEST.json: [Errno 2] No such file or directory: 'ROOT/store/m/MAR-INF/MANIFEST.json'.",
    ),
    (lambda c: c.manifest([]), "ROOT/store/m/MAR-INF/MANIFEST.json: `model` must be an object with modelName, handler and configFile."),
    (
        lambda c: c.manifest({"model": {**GOOD_MANIFEST["model"], "modelName": "n"}}),
        "ROOT/store/m/MAR-INF/MANIFEST.json: model.modelName is 'n', must be 'm'.",
    ),
    (
        lambda c: c.manifest({"model": {**GOOD_MANIFEST["model"], "configFile": None}}),
        "ROOT/store/m/MAR-INF/MANIFEST.json: model.configFile is None, must be 'model-config.yaml'.",
    ),
    (
        lambda c: c.manifest({"model": {**GOOD_MANIFEST["model"], "handler": ""}}),
        "ROOT/store/m/MAR-INF/MANIFEST.json: model.handler is missing, must be 'lmd_worker.handler'.",
    ),
    (
        lambda c: (c.model / "model-config.yaml").write_text(""),
        "ROOT/store/m/model-config.yaml: must be a mapping, or TorchServe starts one whole model per CPU.",
    ),
    (
        lambda c: (c.model / "model-config.yaml").write_text("a: [b"),
        'reading ROOT/store/m/model-config.yaml: while parsing a flow sequence in "<unicode string>", line 1, column 4: a: [b ^ expected '
        "',' or ']', but got '<stream end>' in \"<unicode string>\", line 1, column 6: a: [b ^.",
    ),
    (lambda c: c.config(continuousBatching=False), "model-config.yaml: continuousBatching is false, must be true."),
    (lambda c: c.config(maxRetryTimeoutInSec=None), "model-config.yaml: maxRetryTimeoutInSec is missing, must be 0."),
    (lambda c: c.config(minWorkers="1"), 'model-config.yaml: minWorkers is "1", must be 1.'),
    (lambda c: c.config(continuousBatching=1), "model-config.yaml: continuousBatching is 1, must be true."),
    (lambda c: c.config(maxWorkers=2), "model-config.yaml: maxWorkers is 2, must be 1."),
    (
        lambda c: c.config(parallelType=None),
        "model-config.yaml: torchrun and parallelType: tp, pp or pptp go together; one without the other starts no ranks.",
    ),
    (
        lambda c: c.config(parallelType="tq"),
        "model-config.yaml: torchrun and parallelType: tp, pp or pptp go together; one without the other starts no ranks.",
    ),
    (
        lambda c: c.config(torchrun={"nnodes": 2, "nproc-per-node": 2}),
        "model-config.yaml: torchrun.nnodes is 2, must be 1; TorchServe cannot feed ranks of another node.",
    ),
    (lambda c: c.config(deepspeed=[]), "model-config.yaml: torchrun and deepspeed must be mappings."),
    (
        lambda c: (c.model / "ds-config.json").write_text('{"tensor_parallel": {"tp_size": 3}}'),
        "ds-config.json: tensor_parallel.tp_size is 3, but model-config.yaml starts 2 ranks (torchrun.nproc-per-node). "
        "Render both from one object with `lmd render`.",
    ),
    (
        lambda c: c.variables.pop("LOCAL_SIZE"),
        "LOCAL_SIZE is not set; set it to the number of ranks, 2, as DeepSpeed's CPU all-reduce crashes without it.",
    ),
    (
        lambda c: c.properties.unlink(),
        "reading ROOT/config/config.properties: [Errno 2] No such file or directory: 'ROOT/config/config.properties'.",
    ),
    (lambda c: c.configure(load_models="all"), "config.properties: load_models is all, must be m."),
    (lambda c: c.configure(decode_input_request=""), "config.properties: decode_input_request is missing, must be false."),
    (lambda c: c.configure(disable_token_authorization="false"), "config.properties: disable_token_authorization is false, must be true."),
    (
        lambda c: c.configure(inference_address="https://127.0.0.1:8443"),
        "config.properties: inference_address is 'https://127.0.0.1:8443'; give http://127.0.0.1:PORT.",
    ),
    (
        lambda c: c.configure(management_address="http://127.0.0.1:x"),
        "config.properties: management_address is 'http://127.0.0.1:x'; give http://127.0.0.1:PORT.",
    ),
    (lambda c: c.variables.update(TEMP=f"{c.root}/no"), "TEMP=ROOT/no: no writable directory; mount one."),
    (lambda c: c.java("11.0.2"), "ROOT/bin/java: version 11; TorchServe needs 17 or later."),
    (lambda c: c.java("1.8.0_300"), "ROOT/bin/java: version 1; TorchServe needs 17 or later."),
    (lambda c: (c.root / "bin" / "java").unlink(), "java: not found in JAVA_HOME or on PATH; install version 17 or later."),
    (lambda c: c.variables.update(JAVA_HOME="/nowhere"), "java: not found in JAVA_HOME or on PATH; install version 17 or later."),
    (
        lambda c: c.variables.update(CUDA_VISIBLE_DEVICES="GPU-1f"),
        "CUDA_VISIBLE_DEVICES is GPU-1f; the frontend ends on anything but numbers, so leave it to the device plugin.",
    ),
]


@pytest.mark.parametrize(("spoil", "problem"), [pytest.param(*case, id=case[1][:70]) for case in SPOILT])
def test_one_thing_wrong_is_one_sentence(container: Container, spoil: Callable[[Container], object], problem: str) -> None:
    spoil(container)
    assert container.problems() == [problem]


def test_a_temporary_directory_too_long_for_sockets_is_refused_by_its_length(container: Container) -> None:
    root = Path(container.variables["TEMP"])
    fits = root / ("d" * (107 - len(f"{root}//.ts.sock.29500")))
    for directory, problems in ((fits, []), (Path(f"{fits}d"), ["too long for local sockets by 1 bytes."])):
        directory.mkdir()
        container.variables["TEMP"] = str(directory)
        assert [problem.partition(": ")[2] for problem in container.problems()] == problems
        with socket.socket(socket.AF_UNIX) as unix, pytest.raises(OSError, match="too long") if problems else contextlib.nullcontext():
            unix.bind(f"{directory}/.ts.sock.29500")


def test_every_problem_is_told_and_left_as_last_words(container: Container) -> None:
    container.java("11")
    container.configure(load_models="all")
    container.config(continuousBatching=None)
    last_words = container.root / "last-words"
    last_words.write_text("of an earlier container\n")
    started: list[object] = []
    environment = Environment.from_variables(container.variables)
    problems = bootstrap.serve(environment, container.variables, lambda *given: started.append(given), lambda *given: started.append(given))
    assert len(problems) == 3
    assert last_words.read_text() == " ".join(problems) + "\n"
    assert started == []


def test_one_process_needs_no_torchrun_and_no_local_size(container: Container) -> None:
    one = {"parallelType": None, "torchrun": {}, "handler": {**GOOD_CONFIG["handler"], "strategy": "None"}}
    text = {key: value for key, value in {**GOOD_CONFIG, **one}.items() if key not in ("parallelType", "torchrun", "deepspeed")}
    (container.model / "model-config.yaml").write_text(yaml.safe_dump(text))
    del container.variables["LOCAL_SIZE"]
    assert container.problems() == []


@pytest.mark.parametrize("kind", ["tp", "pp", "pptp"])
def test_ranks_may_share_their_work_in_three_ways(container: Container, kind: str) -> None:
    container.config(parallelType=kind)
    assert container.problems() == []


@pytest.mark.parametrize(("local_size", "problems"), [("4", 0), ("2", 1)])
def test_ranks_of_all_stages_are_on_this_host(container: Container, local_size: str, problems: int) -> None:
    handler = {**GOOD_CONFIG["handler"], "strategy": "PipelineTensor", "pipeline": 2}
    container.config(parallelType="pptp", torchrun={"nnodes": 1, "nproc-per-node": 4}, handler=handler)
    container.variables["LOCAL_SIZE"] = local_size
    assert len(container.problems()) == problems


@pytest.mark.parametrize(
    ("level", "problems"),
    [
        (1, []),
        (2, ["model-config.yaml: parallelLevel is 2, must be 1: the frontend feeds one process."]),
        (None, ["model-config.yaml: parallelLevel is missing, must be 1: the frontend feeds one process."]),
    ],
)
def test_one_process_that_places_the_model_itself_is_one_process(container: Container, level: int | None, problems: list[str]) -> None:
    handler = {**GOOD_CONFIG["handler"], "strategy": "Accelerate"}
    config = {**GOOD_CONFIG, "parallelType": "custom", "parallelLevel": level, "handler": handler}
    kept = {key: value for key, value in config.items() if key not in ("torchrun", "deepspeed") and value is not None}
    (container.model / "model-config.yaml").write_text(yaml.safe_dump(kept))
    del container.variables["LOCAL_SIZE"]
    assert container.problems() == problems


def test_serve_becomes_java_in_an_empty_directory_and_undoes_a_predecessors_flag(container: Container) -> None:
    run = container.root / "run"
    rundir.set_draining(run)
    rundir.write_in_flight(run, 3)
    done = subprocess.run(
        [sys.executable, "-m", "lmd_worker", "serve"], env=container.variables, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    packages = bootstrap.site_packages()
    binaries = Path(sys.executable).parent
    expected = f"""\
{run}/empty
{binaries}:{container.root}/bin|{container.root}/t|{run}/logs|{run}/logs|
-Xmx64m
-XX:+ExitOnOutOfMemoryError
-Dlog4j.configurationFile=file://{Path(bootstrap.__file__).with_name("log4j2.xml")}
-Djava.io.tmpdir={container.root}/t
-Dmodel_server_home={packages}
-cp
.:{packages}/ts/frontend/*
org.pytorch.serve.ModelServer
--python
{sys.executable}
-f
{container.properties}
-s
{container.root}/store
-w
{run}/empty
-ncs
"""
    assert done.stdout == expected
    assert not rundir.is_draining(run)
    assert rundir.read_in_flight(run) == 0
    assert (packages / "ts" / "frontend" / "model-server.jar").is_file()


def test_a_restarted_container_starts_afresh_with_the_chosen_java(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(container.root)  # serve leaves it; this returns
    run = container.root / "run"
    rundir.set_draining(run)
    container.variables["JAVA_HOME"] = str(container.root)
    started: list[str] = []
    environment = Environment.from_variables(container.variables)
    problems = bootstrap.serve(
        environment, container.variables, lambda program, *_: started.append(program), lambda address, _: started.append(address)
    )
    assert problems == []
    assert started == ["127.0.0.1:0", f"{container.root}/bin/java"]
    assert not rundir.is_draining(run)


def test_a_refusal_ends_with_1_and_one_line_a_problem(container: Container) -> None:
    container.configure(load_models="all")
    done = subprocess.run(
        [sys.executable, "-m", "lmd_worker", "serve"], env=container.variables, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "lmd-worker serve: config.properties: load_models is all, must be m.\n"


def test_something_in_the_working_directory_is_refused(container: Container) -> None:
    # a file there would be taken for the model, whose name TorchServe looks up in its working directory first
    (container.root / "run" / "empty" / "m").mkdir(parents=True)
    there = Path.cwd()
    problems = bootstrap.serve(Environment.from_variables(container.variables), container.variables, lambda *_: None, lambda *_: None)
    assert problems == [f"{container.root}/run/empty: must be empty; remove what is in it."]
    assert Path.cwd() == there


@pytest.mark.parametrize("address", ["127.0.0.1:x", "127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:{taken}"])
def test_probes_need_a_port_of_their_own(container: Container, address: str) -> None:
    started: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        given = address.format(taken=other.getsockname()[1])
        container.variables["LMD_PROBES_ADDRESS"] = given
        environment = Environment.from_variables(container.variables)
        (problem,) = bootstrap.serve(environment, container.variables, lambda *arguments: started.append(arguments))
    assert problem.startswith(f"LMD_PROBES_ADDRESS is {given!r}: ")
    assert problem.endswith("; give HOST:PORT, or :PORT, of a free port.")
    assert (container.root / "last-words").read_text() == f"{problem}\n"
    assert started == []


def test_the_server_s_configuration_is_where_the_operator_mounts_it() -> None:
    assert os.fspath(Environment.from_variables({}).server_config) == "/etc/lmd/config.properties"


def test_a_container_that_is_ended_before_it_is_a_server_ends() -> None:
    """Process 1 ignored it, became the server, and its pod was killed only after the whole grace period."""
    program = (
        "import os, signal, time; from lmd_worker import __main__, bootstrap\n"
        "bootstrap.serve = lambda *_: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(60))\n"
        "__main__.serve(None)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 143
