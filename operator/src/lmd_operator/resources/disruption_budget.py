"""The PodDisruptionBudget: a node drain takes replicas one at a time."""

from __future__ import annotations

from kubernetes.client.models.v1_label_selector import V1LabelSelector
from kubernetes.client.models.v1_pod_disruption_budget import V1PodDisruptionBudget
from kubernetes.client.models.v1_pod_disruption_budget_spec import V1PodDisruptionBudgetSpec

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.resources.common import metadata, selector


def disruption_budget(deployment: LargeModelDeployment) -> V1PodDisruptionBudget | None:
    """Return the budget, or None for a single replica: it would block every drain and protect nothing."""
    if deployment.spec.replicas < 2 or deployment.spec.suspend:
        return None
    return V1PodDisruptionBudget(
        api_version="policy/v1",
        kind="PodDisruptionBudget",
        metadata=metadata(deployment, deployment.metadata.name),
        spec=V1PodDisruptionBudgetSpec(
            max_unavailable=1,
            selector=V1LabelSelector(match_labels=selector(deployment)),
            unhealthy_pod_eviction_policy="AlwaysAllow",
        ),
    )
