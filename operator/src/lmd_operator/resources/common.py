"""What every child shares: its labels, its metadata, its owner."""

from __future__ import annotations

from kubernetes.client.models.v1_object_meta import V1ObjectMeta
from kubernetes.client.models.v1_owner_reference import V1OwnerReference

from lmd_operator.api.v1alpha1 import API_VERSION, KIND, LargeModelDeployment
from lmd_operator.names import FIELD_MANAGER, LABEL_DEPLOYMENT, LABEL_INSTANCE, LABEL_MANAGED_BY, LABEL_NAME, LABEL_TASK, LABEL_TASK_OF


def selector(deployment: LargeModelDeployment) -> dict[str, str]:
    """Labels that select the pods of one object. They never change: a Deployment's selector is immutable."""
    return {LABEL_DEPLOYMENT: deployment.metadata.name}


def labels(deployment: LargeModelDeployment) -> dict[str, str]:
    """Labels of every child."""
    return {
        LABEL_NAME: "large-model",
        LABEL_INSTANCE: deployment.metadata.name,
        LABEL_MANAGED_BY: FIELD_MANAGER,
        **selector(deployment),
    }


def task_labels(deployment: LargeModelDeployment, task: str) -> dict[str, str]:
    """Labels of the pods of a Job: those of a child without the one that selects replicas."""
    shared = {key: value for key, value in labels(deployment).items() if key not in selector(deployment)}
    return {**shared, LABEL_TASK: task, LABEL_TASK_OF: deployment.metadata.name}


def metadata(deployment: LargeModelDeployment, name: str, extra: dict[str, str] | None = None, *, outlives: bool = False) -> V1ObjectMeta:
    """Metadata of a child, owned by the object once the API server has given it a uid, unless it outlives the object.

    One that nobody owns has no instance label: Argo CD may take that for its own, and would prune it.
    """
    marks = {key: value for key, value in labels(deployment).items() if not (outlives and key == LABEL_INSTANCE)}
    return V1ObjectMeta(
        name=name,
        namespace=deployment.metadata.namespace,
        labels={**marks, **(extra or {})},
        owner_references=[_owner(deployment)] if deployment.metadata.uid and not outlives else None,
    )


def _owner(deployment: LargeModelDeployment) -> V1OwnerReference:
    return V1OwnerReference(
        api_version=API_VERSION,
        kind=KIND,
        name=deployment.metadata.name,
        uid=deployment.metadata.uid,
        controller=True,
        block_owner_deletion=True,
    )
