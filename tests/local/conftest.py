"""A running `lmd serve`, as a user starts it, and what is left of it afterwards."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lmd_operator.local.janitor import MARK

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "crds" / "examples" / "smollm2.yaml"
LMD = Path(sys.executable).with_name("lmd")
START_SECONDS = 300
END_SECONDS = 60
SHARED = Path("/dev/shm")


def command_line(process: psutil.Process) -> list[str]:
    """Return a process' command line, an empty one once it has ended: probes come and go all the time."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


class Serving:
    """One `lmd serve` process; `lines` grows while it speaks."""

    def __init__(self, models: Path, *arguments: str, manifest: Path = EXAMPLE) -> None:
        command = [str(LMD), "serve", str(manifest), "--port", "0", "--models", str(models), *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with self._changed:
                    self.lines.append(line.rstrip())
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, words: str) -> str:
        """Return the first line with these words; fail with everything said when it ends without them."""
        assert self.process.stdout is not None

        def said() -> str | None:
            return next((line for line in self.lines if words in line), None)

        with self._changed:
            self._changed.wait_for(lambda: said() is not None or self.process.stdout.closed, timeout=START_SECONDS)
            found = said()
        assert found is not None, "\n".join([f"never said {words!r}:", *self.lines])
        return found

    @property
    def port(self) -> int:
        match = re.search(r"http://127\.0\.0\.1:(\d+)", self.wait_for("base URL"))
        assert match
        return int(match[1])

    def folder(self) -> str:
        """Return the run's folder, by the mark on its processes."""
        (worker,) = [child for child in self._children() if "org.pytorch.serve.ModelServer" in command_line(child)]
        return worker.environ()[MARK]

    def ranks(self) -> list[psutil.Process]:
        """Return the rank processes, by rank."""
        found = [child for child in self._children() if any("model_service_worker.py" in part for part in command_line(child))]
        return sorted((child for child in found if "RANK" in child.environ()), key=lambda child: int(child.environ()["RANK"]))

    def everything(self) -> list[psutil.Process]:
        """Return the process and all that it started, the janitor included."""
        return [psutil.Process(self.process.pid), *self._children()]

    def _children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_for_end(self) -> int:
        """Return the exit status once the process has ended and said its last line."""
        status = self.process.wait(timeout=END_SECONDS)
        self._reader.join(timeout=END_SECONDS)
        return status

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.wait_for_end()

    def post(self, body: object, *, raw: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Return status and decoded JSON of the plain route."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            data = json.dumps(body).encode() if raw is None else raw
            connection.request("POST", "/predictions/smollm2", data, headers or {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
            return response.status, json.loads(text) if text.startswith("{") else text
        finally:
            connection.close()


@pytest.fixture(scope="package")
def start(smollm2: Path) -> Iterator[Callable[..., Serving]]:
    """Start servers; whatever still runs at the end is ended."""
    started: list[Serving] = []

    def run(*arguments: str, manifest: Path = EXAMPLE) -> Serving:
        serving = Serving(smollm2.parent, *arguments, manifest=manifest)
        started.append(serving)
        return serving

    yield run
    for serving in started:
        serving.end()


@pytest.fixture(scope="package")
def example() -> Path:
    """The manifest that `make serve` serves."""
    return EXAMPLE


class Remains:
    """What must be gone with a server: its processes, its folder and what it had in the shared memory."""

    def __init__(self) -> None:
        self._shared = shared_files()

    def of(self, serving: Serving) -> Callable[[], None]:
        """Note what a running server has; call what is returned once it has ended."""
        processes, folder = serving.everything(), serving.folder()

        def check() -> None:
            _, alive = psutil.wait_procs(processes, timeout=END_SECONDS)
            assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
            assert not Path(folder).exists()
            deadline = time.monotonic() + END_SECONDS
            while left := {name for name in shared_files() - self._shared if not is_used(SHARED / name)}:
                assert time.monotonic() < deadline, f"nobody uses {left}, and they are not removed"
                time.sleep(0.1)  # what another server makes now is open in a moment

        return check


def shared_files() -> set[str]:
    """Return the names of what is in the shared memory."""
    return set(os.listdir(SHARED))


def is_used(file: Path) -> bool:
    """Whether a running process has a file open or mapped; or it is gone: other tests' servers come and go beside this one."""
    return any(str(file) in held_files(process.pid) for process in psutil.process_iter()) or not file.exists()


def held_files(pid: int) -> set[str]:
    """Return the paths of what a process has open or mapped, as far as it still runs."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        found |= {line.split(maxsplit=5)[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.add(os.readlink(entry))
    return found


@pytest.fixture
def remains() -> Remains:
    return Remains()


@pytest.fixture(scope="package")
def server(start: Callable[..., Serving]) -> Iterator[Serving]:
    """One server that every test here may use and none may end; SIGTERM ends it, and nothing of it may be left."""
    remains = Remains()
    serving = start()
    serving.wait_for("serving")
    assert_nothing_left = remains.of(serving)
    yield serving
    serving.end()
    assert_nothing_left()


class Plain:
    """The model in plain transformers, in this process: what every answer is compared with."""

    def __init__(self, model: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def answer(self, prompt: str, max_tokens: int) -> tuple[str, int]:
        """Return the greedy answer and its number of tokens."""
        import torch

        inputs = self.tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            out = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, pad_token_id=self.tokenizer.eos_token_id)
        tokens = out[0, inputs["input_ids"].shape[1] :]
        return self.tokenizer.decode(tokens, skip_special_tokens=True), len(tokens)


@pytest.fixture(scope="package")
def plain(smollm2: Path) -> Plain:
    return Plain(smollm2)
