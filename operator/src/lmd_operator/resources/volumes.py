"""The volume at the models' place, by where the model comes from."""

from __future__ import annotations

from kubernetes.client.models.v1_empty_dir_volume_source import V1EmptyDirVolumeSource
from kubernetes.client.models.v1_image_volume_source import V1ImageVolumeSource
from kubernetes.client.models.v1_persistent_volume_claim_volume_source import V1PersistentVolumeClaimVolumeSource
from kubernetes.client.models.v1_volume import V1Volume

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.rendering.weights import remote_source

WEIGHTS = "weights"


def weights_volume(deployment: LargeModelDeployment) -> V1Volume | None:
    """Return the volume of a replica, or None when the model is in the worker's image."""
    given = given_volume(deployment)
    if given is not None:
        return given
    if (cache := deployment.spec.model.cache) is not None:
        return cache_volume(cache.claim_name)
    return V1Volume(name=WEIGHTS, empty_dir=V1EmptyDirVolumeSource()) if remote_source(deployment) is not None else None


def given_volume(deployment: LargeModelDeployment) -> V1Volume | None:
    """Return the volume that holds the model already: a claim, or an image."""
    source = deployment.spec.model.source
    if (claim := source.persistent_volume_claim) is not None:
        mounted = V1PersistentVolumeClaimVolumeSource(claim_name=claim.claim_name, read_only=True)
        return V1Volume(name=WEIGHTS, persistent_volume_claim=mounted)
    if (image := source.image) is not None:
        return V1Volume(name=WEIGHTS, image=V1ImageVolumeSource(reference=image.reference, pull_policy=image.pull_policy))
    return None


def cache_volume(claim: str) -> V1Volume:
    """Return a claim that is shared, as what fills it mounts it."""
    return V1Volume(name=WEIGHTS, persistent_volume_claim=V1PersistentVolumeClaimVolumeSource(claim_name=claim))
