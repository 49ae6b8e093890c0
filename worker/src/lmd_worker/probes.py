"""What the kubelet asks of the worker container: `started`, then `ready` and `alive`, and `drain` before it ends.

`ready` needs a worker that says READY, as `/ping` is 200 from the first second on, before any rank exists.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmd_worker import lastwords, properties, rundir
from lmd_worker.environment import DRAIN_LAG_SECONDS, DRAIN_SECONDS, Environment, seconds
from lmd_worker.haproxy import Haproxy, HaproxyError
from lmd_worker.web import HTTP_OK, WebError, get

DRAIN_POLL_SECONDS = 0.3
DRAINED_LOOKS = 3
"""Zero in flight this often in a row: one look can fall between a request's queue and its rank."""
QUEUED_LOOK_SECONDS = 1.0
STARTED_SECONDS = 2.5
"""How long one start-up probe waits for the model: shorter than its period and its timeout, in resources/pod_template.py."""
STARTED_POLL_SECONDS = 0.25
FRONTEND_CLASS = b"org.pytorch.serve.ModelServer"
NOT_LOADED = "StartupTimeout"
"""Begins the last words of a container that was ended before its model was loaded; the operator knows it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line for the kubelet's event, and whether it is good news."""

    good: bool
    line: str


class _CannotTellError(Exception):
    """A server was not reached or said something unexpected; the message says which."""


def ready(environment: Environment) -> Finding:
    """Tell whether this pod should get requests."""
    if rundir.is_draining(environment.run_directory):
        return Finding(False, "draining")
    try:
        model = _describe(environment, timeout_seconds=3.0)
    except _CannotTellError as error:
        return Finding(False, str(error))
    states = [str(worker.get("status")) for worker in model.get("workers", [])]
    return Finding("READY" in states, f"workers of {environment.model_name}: {', '.join(states) or 'none'}")


def started(
    environment: Environment, *, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic
) -> Finding:
    """Tell whether the model is loaded, as soon as it is, within `STARTED_SECONDS`.

    Where a rank has died while loading it never will be, and the frontend is ended. Until this has succeeded once the kubelet does not
    ask whether the container is alive, and it gives a model as long as the largest one on the slowest volume needs.
    """
    end = clock() + STARTED_SECONDS
    while not (finding := ready(environment)).good:
        with contextlib.suppress(_CannotTellError):
            health = _health(environment)
            if not health.good:
                _end_frontend(environment)
                return health
        if clock() >= end:
            break
        sleep(STARTED_POLL_SECONDS)
    return finding


def _end_frontend(environment: Environment) -> None:
    pid = rundir.read_frontend(environment.run_directory)
    with contextlib.suppress(OSError):  # it may be gone by now
        if pid is not None and FRONTEND_CLASS in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            os.kill(pid, signal.SIGTERM)


def alive(environment: Environment) -> Finding:
    """Tell whether the container should go on; false for good once a rank has died."""
    try:
        return _health(environment)
    except _CannotTellError as error:
        return Finding(False, str(error))


def _health(environment: Environment) -> Finding:
    """Tell what the frontend says of its ranks. Raises `_CannotTellError` while it says nothing.

    A death is left as last words too, unless a rank had time for some: the launcher ends the survivors of a killed rank at once.
    """
    status, _ = _get(environment, "inference_address", "/ping", timeout_seconds=3.0)
    if status != HTTP_OK:
        lastwords.write(environment.termination_message_path, f"A rank has died (/ping answered {status}); all ranks must restart.")
    return Finding(status == HTTP_OK, f"/ping answered {status}")


def drain(
    environment: Environment,
    variables: Mapping[str, str],
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Finding:
    """Turn unready, then return when nothing is in flight any more or the time is over.

    Runs as the pre-stop hook, so also before a liveness restart; then there is nothing to wait for, and a flag left behind
    would keep the next container unready. A drain that could not wait is not an error: the container ends either way.
    A model that is not loaded by now will never be in this container: that is left as last words, for the case that its pod stays.
    """
    if not rundir.is_draining(environment.run_directory) and not ready(environment).good:
        age = rundir.age_seconds(environment.run_directory)
        lastwords.write(environment.termination_message_path, f"{NOT_LOADED}: the model was not loaded {age:.0f} s after the start.")
    if not alive(environment).good:
        return Finding(True, "nothing to drain: the frontend is not healthy")
    try:
        lag_seconds = seconds(variables, DRAIN_LAG_SECONDS, 3.0)
        end = clock() + seconds(variables, DRAIN_SECONDS, 50.0)
    except ValueError as error:
        return Finding(False, str(error))
    rundir.set_draining(environment.run_directory)
    sleep(max(0.0, min(lag_seconds, end - clock())))
    empty_looks, left = 0, 0
    while clock() < end:
        left = _in_flight(environment)
        empty_looks = empty_looks + 1 if left == 0 else 0
        if empty_looks == DRAINED_LOOKS:
            return Finding(True, "drained")
        sleep(DRAIN_POLL_SECONDS)
    return Finding(True, f"drain time is over: requests left={left}")


def _in_flight(environment: Environment) -> int:
    """Count requests that are answered or queued. The front door counts them all; without it TorchServe and rank 0 do."""
    with contextlib.suppress(HaproxyError):
        return Haproxy(environment.run_directory / rundir.FRONT_DOOR_SOCKET).requests()
    try:
        model = _describe(environment, timeout_seconds=QUEUED_LOOK_SECONDS)
    except _CannotTellError:
        return 0 if not alive(environment).good else 1
    queued = model.get("jobQueueStatus", {}).get("pendingRequests", 0)
    return rundir.read_in_flight(environment.run_directory) + int(queued)


def _describe(environment: Environment, timeout_seconds: float) -> Mapping[str, Any]:
    """Ask the management address for the model; never with `customized=true`, which reaches rank 0 alone."""
    status, body = _get(environment, "management_address", f"/models/{environment.model_name}", timeout_seconds)
    if status != HTTP_OK:
        raise _CannotTellError(f"/models/{environment.model_name} answered {status}")
    try:
        (model,) = json.loads(body)
    except ValueError as error:
        raise _CannotTellError(f"/models/{environment.model_name} answered no list of one model") from error
    if not isinstance(model, dict):
        raise _CannotTellError(f"/models/{environment.model_name} answered no model")
    return model


def _get(environment: Environment, key: str, path: str, timeout_seconds: float) -> tuple[int, bytes]:
    try:
        host, port = properties.address(properties.read(environment.server_config), key)
        return get(host, port, path, timeout_seconds)
    except OSError as error:
        raise _CannotTellError(f"reading {environment.server_config}: {error.strerror}") from error
    except (ValueError, WebError) as error:
        raise _CannotTellError(str(error)) from error
