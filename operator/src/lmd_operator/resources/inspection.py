"""The Job that says what a model is, where a plan needs to know: it reads configuration and headers, wherever they are."""

from __future__ import annotations

from kubernetes.client.models.v1_job import V1Job
from pydantic import BaseModel

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.inspection import source_key
from lmd_operator.names import TASK_INSPECT
from lmd_operator.rendering.layout import POD
from lmd_operator.rendering.weights import inspect_order
from lmd_operator.resources.fetch import own_variables, secrets
from lmd_operator.resources.job import Work, job
from lmd_operator.resources.network_policy import task_policy
from lmd_operator.resources.volumes import given_volume
from lmd_operator.settings import Settings

KEPT_SECONDS = 600
"""How long a look that is done can be looked at; what it said is in the status then."""


def inspection_job(owner: LargeModelDeployment, settings: Settings) -> V1Job:
    """Return the Job. Nothing is fetched, so it needs no claim of its own and runs before there is a plan, and while suspended."""
    work = Work(
        TASK_INSPECT,
        inspect_order(owner, POD),
        source_key(owner)[-10:],
        given_volume(owner),
        variables=[*secrets(owner), *own_variables(owner)],
        kept_seconds=KEPT_SECONDS,
    )
    return job(owner, settings, work, is_suspended=False)


def inspecting(owner: LargeModelDeployment, settings: Settings) -> tuple[BaseModel, ...]:
    """Return all that is needed for it."""
    return task_policy(owner), inspection_job(owner, settings)
