"""The Deployment: Kubernetes does the rolling, we choose how many pods may surge or be missing."""

from __future__ import annotations

from kubernetes.client.models.v1_deployment import V1Deployment
from kubernetes.client.models.v1_deployment_spec import V1DeploymentSpec
from kubernetes.client.models.v1_deployment_strategy import V1DeploymentStrategy
from kubernetes.client.models.v1_label_selector import V1LabelSelector
from kubernetes.client.models.v1_rolling_update_deployment import V1RollingUpdateDeployment

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.planning.plan import Plan
from lmd_operator.rendering.files import RenderedFiles
from lmd_operator.rendering.layout import POD, Layout
from lmd_operator.resources.common import metadata, selector
from lmd_operator.resources.pod_template import pod_template
from lmd_operator.settings import Settings

PROGRESS_MARGIN_SECONDS = 600
"""Scheduling and image pull, on top of the model's own start-up limit."""


def deployment(
    owner: LargeModelDeployment, plan: Plan, files: RenderedFiles, settings: Settings, layout: Layout = POD, *, is_tight: bool = False
) -> V1Deployment:
    """Return the Deployment of one object: one pod a replica. `is_tight` says that there is no room for one more."""
    spec = owner.spec
    return V1Deployment(
        api_version="apps/v1",
        kind="Deployment",
        metadata=metadata(owner, owner.metadata.name),
        spec=V1DeploymentSpec(
            replicas=0 if spec.suspend else spec.replicas,
            revision_history_limit=spec.rollout.revision_history_limit,
            progress_deadline_seconds=plan.startup.seconds + PROGRESS_MARGIN_SECONDS,
            selector=V1LabelSelector(match_labels=selector(owner)),
            strategy=strategy(owner, is_tight=is_tight),
            template=pod_template(owner, plan, files, settings, layout),
        ),
    )


def strategy(owner: LargeModelDeployment, *, is_tight: bool = False) -> V1DeploymentStrategy:
    """Return how pods are replaced: under Auto by one more, so that nothing is missing, or one by one where there is no room for it."""
    rollout = owner.spec.rollout
    if rollout.strategy == "Recreate":
        return V1DeploymentStrategy(type="Recreate")
    surge, unavailable = rollout.max_surge, rollout.max_unavailable
    if surge is None and unavailable is None:
        surges = rollout.strategy == "Auto" and not is_tight
        surge, unavailable = (1, 0) if surges else (0, 1)
    if surge is None:
        surge = 1 if unavailable in (0, "0%") else 0
    if unavailable is None:
        unavailable = 1 if surge in (0, "0%") else 0
    return V1DeploymentStrategy(
        type="RollingUpdate", rolling_update=V1RollingUpdateDeployment(max_surge=surge, max_unavailable=unavailable)
    )
