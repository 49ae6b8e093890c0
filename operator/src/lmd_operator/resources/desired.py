"""Everything an object wants to exist, as typed Kubernetes objects, in the order in which they are applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from lmd_operator.api.semantics import quantity
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.inspection import is_needed
from lmd_operator.planning.plan import Plan, settle
from lmd_operator.planning.shapes import ModelShape
from lmd_operator.rendering.files import RenderedFiles, render
from lmd_operator.rendering.layout import POD, Layout
from lmd_operator.resources.cache import fill_job, removal_job
from lmd_operator.resources.config_map import config_map
from lmd_operator.resources.deployment import deployment
from lmd_operator.resources.disruption_budget import disruption_budget
from lmd_operator.resources.network_policy import network_policy, task_policy
from lmd_operator.resources.service import service
from lmd_operator.settings import Settings


@dataclass(frozen=True, slots=True)
class Desired:
    """One object's plan, its files, their revision and its children.

    `fill` is the name of the Job without which no replica starts, if any.
    """

    plan: Plan
    files: RenderedFiles
    revision: str
    resources: tuple[BaseModel, ...]
    fill: str = ""


def desired(
    owner: LargeModelDeployment, settings: Settings, layout: Layout = POD, shape: ModelShape | None = None, *, is_tight: bool = False
) -> Desired:
    """Return what should exist. Pure: equal inputs give equal objects, and nothing is read from the cluster.

    `shape` is the model's, where the spec leaves the tensor degree to the planner; `is_tight` says that there is no room for one replica
    more while they are replaced.
    """
    plan = settle(owner.spec, cpu_cores(owner), shape)
    files = render(owner, plan, layout)
    fill = fill_job(owner, settings)
    children: list[BaseModel | None] = [
        config_map(owner, files),
        network_policy(owner),
        task_policy(owner) if fill is not None or is_needed(owner) else None,
        service(owner),
        disruption_budget(owner),
        removal_job(owner, settings),
        fill,
        deployment(owner, plan, files, settings, layout, is_tight=is_tight),
    ]
    name = fill.metadata.name if fill is not None and fill.metadata is not None else None
    return Desired(plan, files, files.revision, tuple(child for child in children if child is not None), name or "")


def cpu_cores(owner: LargeModelDeployment) -> float | None:
    """Return the cores a replica may use, from its limit or else its request."""
    resources = owner.spec.template.resources
    text = resources.limits.get("cpu") or resources.requests.get("cpu")
    return quantity(text) if text else None


def document(resource: BaseModel) -> dict[str, Any]:
    """Return a typed Kubernetes object as plain data, without unset fields."""
    return resource.model_dump(by_alias=True, exclude_none=True, mode="json")
