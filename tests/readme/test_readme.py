"""Every command in the README works as it is printed; only the port is another one, as 8080 may be taken here."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lmd_operator.local.ports import free_ports

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
INSTALLATION = (REPOSITORY / "docs" / "install.md").read_text()
"""Its commands are run on a real control plane by tests/cluster/test_install.py."""
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
CURLS = [block for block in BLOCKS if block.startswith("curl")]
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith(".venv/bin/lmd")]
MODEL_COMMANDS = [line for line in COMMANDS if " serve " in line]
START_SECONDS = 600


def environment() -> dict[str, str]:
    """The user's environment: no variables of a make that may be running us."""
    return {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")}


def run(command: str) -> str:
    done = subprocess.run(
        ["bash", "-euc", command], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=START_SECONDS
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_block_is_run_by_a_test() -> None:
    in_a_cluster = [block for block in BLOCKS if f"```sh\n{block}```" in INSTALLATION]
    assert len(in_a_cluster) == 2
    known = ["make serve\n", "make test\n", *CURLS, *in_a_cluster]
    assert [block for block in BLOCKS if block not in known and not all(line in COMMANDS for line in block.splitlines())] == []
    assert len(CURLS) == 4
    assert len(PYTHON) == 1
    assert len(COMMANDS) == 5


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test\n" in BLOCKS
    assert (REPOSITORY / ".ci" / "run").read_text().rstrip().endswith("\nmake test")


@pytest.mark.parametrize("command", [line for line in COMMANDS if line not in MODEL_COMMANDS])
def test_commands_on_manifests_work(command: str, tmp_path: Path) -> None:
    assert run(command.replace("build/rendered", str(tmp_path)))


@pytest.mark.model
@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_commands_that_serve_work(command: str, smollm2: Path) -> None:
    assert "answer: " in run(command)


@pytest.fixture(scope="module")
def port(smollm2: Path) -> Iterator[int]:
    """`make serve` on a free port, stopped with Ctrl-C; it must leave no process behind."""
    number = free_ports(1)[0]
    process = subprocess.Popen(
        ["make", "serve", f"PORT={number}"],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    timer = threading.Timer(START_SECONDS, process.kill)
    timer.start()
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if "Ctrl-C" in line:
            break
    said = "\n".join(lines)
    try:
        assert "The capital of France is Paris" in said, said
        assert f"base URL http://127.0.0.1:{number}" in said
        assert f"base URL for OpenAI clients http://127.0.0.1:{number}/predictions/smollm2/1.0/v1" in said
        started = psutil.Process(process.pid).children(recursive=True)
        yield number
    finally:
        os.killpg(process.pid, signal.SIGINT)
        with process.stdout:
            process.stdout.read()
        process.wait(timeout=60)
        timer.cancel()
    assert psutil.wait_procs(started, timeout=60)[1] == []


@pytest.mark.model
@pytest.mark.parametrize("block", CURLS, ids=["whole", "streamed", "openai", "report"])
def test_make_serve_answers_the_curl_commands(block: str, port: int) -> None:
    answer = run(block.replace("127.0.0.1:8080", f"127.0.0.1:{port}"))
    if "stream" in block:
        assert answer.rstrip().endswith("data: [DONE]")
    elif "report" in block:
        assert [rank["degree"] for rank in json.loads(answer)["ranks"]] == [3, 3, 3]
    else:
        assert json.loads(answer).get("completion_tokens", 0) > 3, answer


@pytest.mark.model
def test_make_serve_answers_the_openai_package(port: int, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PYTHON[0].replace("127.0.0.1:8080", f"127.0.0.1:{port}"))
    said = run(f"{sys.executable} {program}")
    assert "Paris" in said
    assert "city=" in said.splitlines()[-1]
