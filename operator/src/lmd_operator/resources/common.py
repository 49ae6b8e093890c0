"""What every child shares: its labels, its metadata, its owner."""

from __future__ import annotations

from kubernetes.client.models.v1_object_meta import V1ObjectMeta
from kubernetes.client.models.v1_owner_reference import V1OwnerReference

from lmd_operator.api.v1alpha1 import API_VERSION, KIND, LargeModelDeployment
from lmd_operator.names import FIELD_MANAGER, LABEL_DEPLOYMENT, LABEL_INSTANCE, LABEL_MANAGED_BY, LABEL_NAME


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


def metadata(deployment: LargeModelDeployment, name: str, extra: dict[str, str] | None = None) -> V1ObjectMeta:
    """Metadata of a child, owned by the object once the API server has given it a uid."""
    return V1ObjectMeta(
        name=name,
        namespace=deployment.metadata.namespace,
        labels={**labels(deployment), **(extra or {})},
        owner_references=[_owner(deployment)] if deployment.metadata.uid else None,
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
