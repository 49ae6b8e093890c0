"""One running worker: started, probed until it is ready, watched, and asked. A kubelet in small."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from lmd_operator.errors import LocalRunError
from lmd_operator.local.container import InitCommand, Liveness, LocalContainer
from lmd_operator.local.janitor import MARK
from lmd_operator.local.ports import LOOPBACK

LOG_FILE = "worker.log"
WORKER_LINE = re.compile(r"\b(?P<level>INFO|WARNING|ERROR) rank=0 lmd_worker\S*: (?P<words>.*)")
"""What rank 0 says about its own progress, inside the frontend's log lines."""
PASSED_ON = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "TERM",
)
"""Variables of this machine that a fetch here needs; in a pod they come by the template."""
POLL_SECONDS = 0.5
PROBE_TIMEOUT_SECONDS = 10.0
LOG_TAIL_LINES = 15


class Server:
    """The worker's process and what it says. Ending it is the janitor's work."""

    def __init__(self, container: LocalContainer, root: Path, java_directory: str | None) -> None:
        self._container = container
        self._log = root / LOG_FILE
        self._environment = _environment(container.environment, root, java_directory)
        self._position = 0
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [_command(container.command[0]), *container.command[1:]],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self, report: Callable[[str], None]) -> None:
        """Return when the startup probe succeeds. Raises `LocalRunError` with the worker's own last words."""
        deadline = time.monotonic() + self._container.startup_seconds
        while True:
            for words in self._news():
                report(words)
            if self._ended(POLL_SECONDS):
                raise LocalRunError(f"the worker ended while starting: {self._cause()}")
            if self._container.termination_message.is_file() and self._last_words():
                raise LocalRunError(f"the worker could not load the model: {self._cause()}")
            if self._has_started():
                return
            if time.monotonic() > deadline:
                raise LocalRunError(
                    f"the model was not ready after {self._container.startup_seconds} s: raise "
                    f"engine.torchServe.startupTimeoutSeconds. {self._cause()}"
                )

    def wait_until_unhealthy(self) -> str:
        """Return why the worker would be restarted now, once it would; until then, block."""
        liveness, failures = self._container.liveness, 0
        while failures < liveness.failures:
            if self._ended(liveness.period_seconds):
                return f"the worker ended: {self._cause()}"
            failures = 0 if _is_alive(liveness) else failures + 1
        return f"the worker is no longer healthy: {self._cause()}"

    def _ended(self, timeout_seconds: float) -> bool:
        try:
            self._process.wait(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _has_started(self) -> bool:
        command = self._container.started_command
        try:
            done = subprocess.run(
                [_command(command[0]), *command[1:]],
                env=self._environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=PROBE_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def _news(self) -> list[str]:
        with self._log.open("rb") as log:
            log.seek(self._position)
            whole, newline, _ = log.read().rpartition(b"\n")
        self._position += len(whole) + len(newline)
        found = (WORKER_LINE.search(line) for line in whole.decode(errors="replace").splitlines())
        return [match["words"] for match in found if match]

    def _last_words(self) -> str:
        message = self._container.termination_message
        return message.read_text().strip() if message.is_file() else ""

    def _cause(self) -> str:
        """Return the worker's own sentence, or else the end of its log."""
        words = self._last_words()
        if words:
            return words
        lines = self._log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join(["it left no last words; the end of its log:", *lines])


def _is_alive(liveness: Liveness) -> bool:
    connection = HTTPConnection(LOOPBACK, liveness.port, timeout=liveness.timeout_seconds)
    try:
        connection.request("GET", liveness.path)
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def run_init(init: InitCommand, root: Path, termination_message: Path, report: Callable[[str], None]) -> None:
    """Run an init container's command to its end; its own bar is shown in a terminal, its lines are reported elsewhere.

    What a Secret would hold is taken from the variable of the same name here. Raises `LocalRunError` with its last words.
    """
    secrets = {name: os.environ[name] for name in init.secrets if name in os.environ}
    through = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    variables = {**through, **init.environment, **secrets, "LMD_PROGRESS_PORT": ""}
    command = [_command(init.command[0]), *init.command[1:]]
    with subprocess.Popen(command, env=_environment(variables, root, None), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if (told := WORKER_LINE.search(line)) is not None:
                report(told["words"])
    if process.returncode:
        words = termination_message.read_text().strip() if termination_message.is_file() else ""
        raise LocalRunError(f"the model could not be fetched: {words.partition(': ')[2] or words or 'it left no last words'}")
    termination_message.write_text("")  # in a pod every container has a file of its own


def _command(name: str) -> str:
    """Return the console script beside our interpreter, where the image has it on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def _environment(container: Mapping[str, str], root: Path, java_directory: str | None) -> dict[str, str]:
    """Return the container's variables and a PATH; nothing else of ours gets in, as in a pod."""
    path = [str(Path(sys.executable).parent), java_directory, os.environ.get("PATH", os.defpath)]
    return {"PATH": os.pathsep.join(filter(None, path)), "LANG": "C.UTF-8", **container, MARK: str(root)}
