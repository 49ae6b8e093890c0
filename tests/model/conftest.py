"""Ranks as real processes, under torchrun or started one by one, and always ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lmd_operator.local.ports import free_ports

HERE = Path(__file__).parent
DEADLINE_SECONDS = 420
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]


def environment(**more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LMD_RUN_DIR"}}
    always = {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1", "PYTHONFAULTHANDLER": "1", "HF_HUB_OFFLINE": "1"}
    return {**inherited, **always, **more}


def run(command: list[str], log: Path, **more: str) -> None:
    """Run to its end, which must be a good one."""
    assert end_of(command, log, **more) == 0, log.read_text()[-4000:]


def end_of(command: list[str], log: Path, **more: str) -> int:
    """Run to its end in a session of its own, leave no process of it behind, and return its status."""
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment(**more), start_new_session=True) as process,
    ):
        try:
            return process.wait(DEADLINE_SECONDS)
        finally:
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            for each in family:  # ranks have sessions of their own
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()


@pytest.fixture(scope="session")
def write_scenario(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The files a rank is started on: ds-config.json, the worker's mapping, and what the test wants of it."""

    def write(
        model: Path, degree: int, *, handler: dict[str, Any] | None = None, document: dict[str, Any] | None = None, **more: Any
    ) -> Path:
        directory = tmp_path_factory.mktemp("scenario")
        usual = {"dtype": "float32", "tensor_parallel": {"tp_size": degree, "tp_grain_size": 64}, "max_out_tokens": 8192}
        (directory / "ds-config.json").write_text(json.dumps(document or {**usual, "replace_with_kernel_inject": False}))
        section = {"model_path": str(model), "strategy": "DeepSpeed", "dtype": "float32", "concurrency": 4, **(handler or {})}
        config = {"torchrun": {"nproc-per-node": degree}, "deepspeed": {"config": "ds-config.json"}, "handler": section}
        path = directory / "scenario.json"
        path.write_text(json.dumps({"directory": str(directory), "config": config, **more}))
        return path

    return write


@pytest.fixture(scope="session")
def run_ranks() -> Callable[..., None]:
    """Run a script with its arguments as so many ranks under torchrun, to its end."""

    def start(command: list[str], degree: int, log: Path, **more: str) -> None:
        run([*TORCHRUN, "--nproc-per-node", str(degree), *command], log, **more)

    return start


@pytest.fixture(scope="session")
def end_of_ranks() -> Callable[..., int]:
    """Run a task of the driver as so many ranks under torchrun, and return torchrun's status, whatever it is."""

    def start(task: str, scenario: Path, out: Path, degree: int, **more: str) -> int:
        driver = [str(HERE / "driver.py"), task, str(scenario), str(out)]
        return end_of([*TORCHRUN, "--nproc-per-node", str(degree), *driver], out / "log", **more)

    return start


@pytest.fixture(scope="session")
def run_driver(run_ranks: Callable[..., None]) -> Callable[..., Any]:
    """Run `driver.py answers` under torchrun and return what rank 0 wrote."""

    def start(scenario: Path, degree: int) -> Any:
        out, run_directory = scenario.parent / "out.json", scenario.parent / "run"
        run_ranks(
            [str(HERE / "driver.py"), "answers", str(scenario), str(out)], degree, scenario.parent / "log", LMD_RUN_DIR=str(run_directory)
        )
        return {**json.loads(out.read_text()), "ranks": json.loads((run_directory / "ranks.json").read_text())["ranks"]}

    return start


@pytest.fixture(scope="session")
def run_reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, list[int]]]:
    """Run `reference.py` and return each request's tokens."""

    def start(model: Path, requests: list[dict[str, Any]]) -> dict[str, list[int]]:
        directory = tmp_path_factory.mktemp("reference")
        (directory / "requests.json").write_text(json.dumps(requests))
        run(
            [sys.executable, str(HERE / "reference.py"), str(model), str(directory / "requests.json"), str(directory / "out.json")],
            directory / "log",
        )
        answers: dict[str, list[int]] = json.loads((directory / "out.json").read_text())
        return answers

    return start


class Ranks:
    """Ranks started one by one, without an agent that would end the survivors before they can speak."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, task: str, scenario: Path, degree: int) -> None:
        port = free_ports(1)[0]
        for rank in range(degree):
            place = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(degree),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            with (self.out / f"log-{rank}").open("w") as log:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, str(HERE / "driver.py"), task, str(scenario), str(self.out)],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=environment(**place),
                    )
                )

    def words(self, name: str, rank: int) -> str:
        """Wait for what a rank writes and return it."""
        path = self.out / f"{name}-{rank}"
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not path.exists():
            assert time.monotonic() < deadline, f"rank {rank} never wrote {name}: {self.log(rank)}"
            assert self.processes[rank].poll() is None or path.exists(), f"rank {rank} is gone: {self.log(rank)}"
            time.sleep(0.05)
        return path.read_text()

    def log(self, rank: int) -> str:
        return (self.out / f"log-{rank}").read_text()[-3000:]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    started = Ranks(tmp_path)
    yield started
    started.end()
