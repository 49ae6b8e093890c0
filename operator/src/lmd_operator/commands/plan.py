"""`lmd plan`: how a model would be split, what each rank would hold, and why not otherwise."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Annotated

import typer

from lmd_operator.api.availability import unavailable
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.commands.common import Claim, Models, Shape, find_shape, load, stop_on
from lmd_operator.errors import LmdError
from lmd_operator.planning.answers import Planned
from lmd_operator.planning.asking import DEVICES_OF_A_NODE, accelerator_of, wishes_of
from lmd_operator.planning.planner import plan as planned
from lmd_operator.planning.selection import Accelerator
from lmd_operator.planning.shapes import ModelShape
from lmd_operator.planning.words import as_data, told


class Format(StrEnum):
    """How a plan is written."""

    TABLE = "table"
    JSON = "json"


class LinkName(StrEnum):
    """What joins the devices of a node."""

    FAST = "fast"
    SLOW = "slow"


def plan(
    sources: Annotated[list[str] | None, typer.Argument(metavar="[FILE...]", help="Manifests; - reads standard input.")] = None,
    files: Annotated[list[str] | None, typer.Option("-f", "--filename", metavar="FILE", help="The same, as kubectl takes it.")] = None,
    shape: Shape = None,
    models: Models = None,
    claim: Claim = None,
    memory: Annotated[str | None, typer.Option(metavar="QUANTITY", help="Memory of a device, for example 80Gi.")] = None,
    per_node: Annotated[int, typer.Option("--devices-per-node", min=1, max=256, help="Devices of one node.")] = DEVICES_OF_A_NODE,
    link: Annotated[LinkName, typer.Option(help="fast: NVLink and the like; slow: PCIe.")] = LinkName.FAST,
    output: Annotated[Format, typer.Option("-o", "--output", help="table, or json for programs.")] = Format.TABLE,
    diff: Annotated[bool, typer.Option("--diff", help="Also what would change in the cluster of the current kubeconfig.")] = False,
) -> None:
    """Say how a model would be split and what every rank would hold, without a cluster and without weights."""
    given = [*(sources or []), *(files or [])]
    if not given:
        raise typer.BadParameter("name a manifest, as FILE or by -f")
    valid, problems = load(given, not_built=lambda spec: [])
    for origin, deployment in valid:
        try:
            found = find_shape(deployment, shape, models, claim or [])
            devices = _devices(deployment, memory, per_node, link)
        except LmdError as error:
            problems.append(f"{origin}: {error}")
            continue
        answer = planned(found, devices, wishes_of(deployment.spec))
        name = deployment.metadata.name
        if output is Format.JSON:
            print(json.dumps(as_data(name, found, devices, answer)))
        else:
            print(told(name, found, devices, answer), end="")
        if not isinstance(answer, Planned):
            problems.append(f"{origin}: {answer.why}: {answer.remedy}")
        else:
            if why := _not_here(deployment, answer):
                print(f"lmd: note: {origin}: {why}", file=sys.stderr)
            elif diff:
                problems += _print_differences(deployment, found)
    stop_on(problems)


def _print_differences(deployment: LargeModelDeployment, shape: ModelShape) -> list[str]:
    from lmd_operator.commands.live import differences

    try:
        print(differences(deployment, shape), end="")
    except LmdError as error:
        return [str(error)]
    return []


def _devices(deployment: LargeModelDeployment, memory: str | None, per_node: int, link: LinkName) -> Accelerator:
    try:
        return accelerator_of(deployment.spec, per_node, "Fast" if link is LinkName.FAST else "Slow", memory)
    except (KeyError, ValueError):
        raise LmdError(f"--memory {memory} is no quantity: write for example 80Gi") from None


def _not_here(deployment: LargeModelDeployment, answer: Planned) -> str:
    """Return why this version cannot run what was planned, or nothing."""
    if blocking := [str(problem) for problem in unavailable(deployment.spec)]:
        return "; ".join(blocking)
    if answer.nodes > 1:
        return f"the plan spans {answer.nodes} nodes, which this version does not run: choose larger devices"
    parallelism = deployment.spec.parallelism
    asked = parallelism.model_copy(update={"strategy": answer.split.engine, "pipeline": 1, "expert": 1})
    return "; ".join(str(problem) for problem in unavailable(deployment.spec.model_copy(update={"parallelism": asked})))
