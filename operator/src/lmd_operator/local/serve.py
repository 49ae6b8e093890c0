"""`lmd serve`: one object, served on this machine until somebody stops it.

1. build what the operator would apply, with paths and ports of this machine   2. prepare the model   3. mount and start
4. probe until ready   5. say what the ranks report   6. ask   7. watch until it ends or is stopped   8. leave nothing
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.errors import LocalRunError
from lmd_operator.local.client import ask
from lmd_operator.local.container import materialise
from lmd_operator.local.devices import require_devices
from lmd_operator.local.display import Display
from lmd_operator.local.janitor import Janitor
from lmd_operator.local.java import java_directory
from lmd_operator.local.models import models_directory, require_memory
from lmd_operator.local.ports import LOOPBACK, free_ports, require_free
from lmd_operator.local.server import Server, run_init
from lmd_operator.planning.shapes import ModelShape
from lmd_operator.rendering.layout import Layout
from lmd_operator.rendering.weights import model_path
from lmd_operator.resources.desired import Desired, cpu_cores, desired
from lmd_operator.settings import Settings

RANKS_FILE = "ranks.json"
"""Written by rank 0 under the run directory once all ranks have loaded; see the worker's report."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line chose. `models` stands for `/models` of the image, `claims` and `config_maps` for those by name."""

    port: int
    models: Path
    claims: Mapping[str, Path]
    config_maps: Mapping[str, Path]
    question: str | None
    once: bool


class Stopped(Exception):  # noqa: N818 - not an error: somebody asked for the end
    """A signal asked for the end."""


def serve(deployment: LargeModelDeployment, options: Options, display: Display, shape: ModelShape | None = None) -> None:
    """Serve until stopped; `shape` is the model's, for a degree of Auto.

    Raises `LocalRunError` when it cannot go on; every process and file is gone in any case.
    """
    deployment = alone(deployment)
    port = require_free(options.port)
    java = java_directory()
    with _stopping_by_signal(), _folder() as root, Janitor(root):
        started = time.monotonic()
        layout = _layout(root, port)
        plan = desired(deployment, Settings(), layout, shape).plan
        require_devices(plan)
        display.phase(f"{deployment.metadata.name}: {plan.strategy}, {_ranks(plan.ranks)} ({plan.reason})")
        layout = replace(layout, models=str(models_directory(deployment, options.models, options.claims, display.progress)))
        built = desired(deployment, Settings(), layout, shape)
        container = materialise(built, options.config_maps)
        for init in container.init_commands:
            display.end_progress()
            run_init(init, root, container.termination_message, display.phase)
        is_on_disk = deployment.spec.engine.zero_inference.parameters == "Disk"
        require_memory(Path(model_path(deployment, layout)), plan, is_on_disk=is_on_disk)
        display.progress("starting the model server")
        server = Server(container, root, java)
        server.wait_until_ready(display.progress)
        verified = _verified(built, layout) if deployment.spec.handler is None else "your handler has loaded"
        display.phase(f"ready after {time.monotonic() - started:.1f} s: {verified}")
        if options.question:
            display.answer(options.question, ask(port, deployment.model_name, options.question, _patience(deployment)))
        display.phase(f"base URL http://{LOOPBACK}:{port}, model at /predictions/{deployment.model_name}")
        display.phase(f"base URL for OpenAI clients http://{LOOPBACK}:{port}/predictions/{deployment.model_name}/1.0/v1")
        if options.once:
            return
        display.phase("serving; stop with Ctrl-C")
        raise LocalRunError(server.wait_until_unhealthy())


def alone(deployment: LargeModelDeployment) -> LargeModelDeployment:
    """Return the object as it is served where nobody else is.

    Without a claim that replicas would share: there is one, and what is fetched is found the next time. With all cores of this machine,
    unless it says how many it wants.
    """
    model = deployment.spec.model.model_copy(update={"cache": None})
    template = deployment.spec.template
    if cpu_cores(deployment) is None:
        requests = {**template.resources.requests, "cpu": str(len(os.sched_getaffinity(0)))}
        template = template.model_copy(update={"resources": template.resources.model_copy(update={"requests": requests})})
    return deployment.model_copy(update={"spec": deployment.spec.model_copy(update={"model": model, "template": template})})


def _patience(deployment: LargeModelDeployment) -> float:
    return float(deployment.spec.engine.torch_serve.response_timeout_seconds)


def _layout(root: Path, port: int) -> Layout:
    probes, management, metrics, grpc_inference, grpc_management = free_ports(5)
    return Layout(
        root=str(root),
        probes_host=LOOPBACK,
        probes_port=probes,
        inference_port=port,
        management_port=management,
        metrics_port=metrics,
        grpc_inference_port=grpc_inference,
        grpc_management_port=grpc_management,
    )


def _verified(built: Desired, layout: Layout) -> str:
    """Compare what the ranks report with the plan. Raises `LocalRunError` on a difference: what was asked must run."""
    path = Path(layout.run) / RANKS_FILE
    ranks = json.loads(path.read_text())["ranks"] if path.is_file() else []
    plan, degrees = built.plan, {rank["degree"] for rank in ranks}
    if len(ranks) != plan.ranks or degrees != {plan.degree} or {rank.get("pipeline", 1) for rank in ranks} != {plan.pipeline}:
        stages = f" in {plan.pipeline} stages" if plan.pipeline > 1 else ""
        raise LocalRunError(
            f"{_ranks(plan.ranks)} at degree {plan.degree}{stages} were planned, but {len(ranks)} reported, with degrees {sorted(degrees)}"
        )
    held = ", ".join(f"{rank['parameter_bytes'] / 2**20:.0f}" for rank in ranks)
    whole = ranks[0]["model_bytes"] / 2**20
    return f"{_ranks(len(ranks))} on {ranks[0]['device']} verified, holding {held} of {whole:.0f} MiB"


def _ranks(count: int) -> str:
    return "1 rank" if count == 1 else f"{count} ranks"


@contextmanager
def _folder() -> Iterator[Path]:
    """Make the run's folder. Unix sockets are made in it, so its path must be short; the janitor removes it."""
    base = "/tmp" if Path("/tmp").is_dir() else None
    yield Path(tempfile.mkdtemp(prefix="lmd-", dir=base))


@contextmanager
def _stopping_by_signal() -> Iterator[None]:
    """Turn the signals that end programs into an exception, so that every clean-up runs."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(number).name)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except Stopped:
        for number in numbers:  # a second Ctrl-C must not interrupt the clean-up
            signal.signal(number, signal.SIG_IGN)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
