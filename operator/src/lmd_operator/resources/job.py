"""A Job: one pod of the worker image that does one thing for an object, tried again for ever, with a growing pause.

The name holds a hash of all that the pod is made of, so that a Job of a name never has to change what cannot be changed. A
failed container is started again in the same pod (`OnFailure`), as an init container is, so a pod tells of every try.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubernetes.client.models.v1_affinity import V1Affinity
from kubernetes.client.models.v1_container import V1Container
from kubernetes.client.models.v1_downward_api_volume_file import V1DownwardAPIVolumeFile
from kubernetes.client.models.v1_downward_api_volume_source import V1DownwardAPIVolumeSource
from kubernetes.client.models.v1_empty_dir_volume_source import V1EmptyDirVolumeSource
from kubernetes.client.models.v1_env_var import V1EnvVar
from kubernetes.client.models.v1_job import V1Job
from kubernetes.client.models.v1_job_spec import V1JobSpec
from kubernetes.client.models.v1_label_selector import V1LabelSelector
from kubernetes.client.models.v1_local_object_reference import V1LocalObjectReference
from kubernetes.client.models.v1_object_field_selector import V1ObjectFieldSelector
from kubernetes.client.models.v1_object_meta import V1ObjectMeta
from kubernetes.client.models.v1_pod_affinity import V1PodAffinity
from kubernetes.client.models.v1_pod_affinity_term import V1PodAffinityTerm
from kubernetes.client.models.v1_pod_spec import V1PodSpec
from kubernetes.client.models.v1_pod_template_spec import V1PodTemplateSpec
from kubernetes.client.models.v1_volume import V1Volume
from kubernetes.client.models.v1_volume_mount import V1VolumeMount
from kubernetes.client.models.v1_weighted_pod_affinity_term import V1WeightedPodAffinityTerm

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.names import ANNOTATION_ORDER, LABEL_REVISION, LABEL_TASK, WORKER_COMMAND
from lmd_operator.rendering.layout import POD
from lmd_operator.rendering.weights import SOURCE
from lmd_operator.resources import security
from lmd_operator.resources.common import metadata, selector, task_labels
from lmd_operator.resources.fetch import PORT, RESOURCES, environment
from lmd_operator.resources.volumes import WEIGHTS
from lmd_operator.settings import Settings

TRIES = 2**31 - 1
"""Kubernetes' largest: whether a token, a name or the network is put right is not known here, so nothing is given up."""
GRACE_SECONDS = 5
"""A fetch may be killed at any moment; it goes on from its journal."""
SCRATCH_SIZE = "1Gi"
_SAME_NODE = "kubernetes.io/hostname"


@dataclass(frozen=True, slots=True)
class Work:
    """What a Job does: `lmd-worker TASK` with an order.

    `about` names what it is about, for its label. `weights` is the volume at the models' place, if any. `seconds` is the longest
    that it may take, `kept_seconds` how long it can be looked at when it is done; without them it has all the time, and stays.
    """

    task: str
    order: Mapping[str, Any]
    about: str
    weights: V1Volume | None = None
    is_writable: bool = False
    variables: Sequence[V1EnvVar] = ()
    seconds: int | None = None
    kept_seconds: int | None = None


def job(owner: LargeModelDeployment, settings: Settings, work: Work, *, is_suspended: bool, outlives: bool = False) -> V1Job:
    """Return the Job; one that `outlives` its object is not collected with it."""
    template = _template(owner, settings, work)
    content = template.model_dump(by_alias=True, exclude_none=True, mode="json")
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    marks = {LABEL_TASK: work.task, LABEL_REVISION: work.about}
    return V1Job(
        api_version="batch/v1",
        kind="Job",
        metadata=metadata(owner, f"{owner.metadata.name}-{digest}", marks, outlives=outlives),
        spec=V1JobSpec(
            backoff_limit=TRIES,
            active_deadline_seconds=work.seconds,
            ttl_seconds_after_finished=work.kept_seconds,
            suspend=is_suspended,
            template=template,
        ),
    )


def _template(owner: LargeModelDeployment, settings: Settings, work: Work) -> V1PodTemplateSpec:
    """Return the pod. Of `spec.template` it has what says where pods may run and how they get there, not what a model needs."""
    template = owner.spec.template
    return V1PodTemplateSpec(
        metadata=V1ObjectMeta(
            labels={**template.metadata.labels, **task_labels(owner, work.task)},
            annotations={**template.metadata.annotations, ANNOTATION_ORDER: json.dumps(work.order, sort_keys=True)},
        ),
        spec=V1PodSpec(
            automount_service_account_token=False,
            enable_service_links=False,
            restart_policy="OnFailure",
            service_account_name=template.service_account_name or None,
            priority_class_name=template.priority_class_name or None,
            image_pull_secrets=[V1LocalObjectReference(name=secret.name) for secret in template.image_pull_secrets] or None,
            node_selector=dict(template.node_selector) or None,
            affinity=_near_the_replicas(owner),
            tolerations=list(template.tolerations) or None,
            termination_grace_period_seconds=GRACE_SECONDS,
            security_context=security.of_pod(),
            containers=[_container(owner, settings, work)],
            volumes=_volumes(work),
        ),
    )


def _near_the_replicas(owner: LargeModelDeployment) -> V1Affinity:
    """Prefer a node that has the claim already: one that only one node can mount would keep the pod waiting elsewhere."""
    term = V1PodAffinityTerm(label_selector=V1LabelSelector(match_labels=selector(owner)), topology_key=_SAME_NODE)
    preferred = V1WeightedPodAffinityTerm(pod_affinity_term=term, weight=100)
    given = owner.spec.template.affinity or V1Affinity()
    near = given.pod_affinity or V1PodAffinity()
    others = near.preferred_during_scheduling_ignored_during_execution or []
    near = near.model_copy(update={"preferred_during_scheduling_ignored_during_execution": [*others, preferred]})
    return given.model_copy(update={"pod_affinity": near})


def _container(owner: LargeModelDeployment, settings: Settings, work: Work) -> V1Container:
    weights = [] if work.weights is None else [_weights_mount(work)]
    return V1Container(
        name=work.task,
        image=owner.spec.template.image or settings.worker_image,
        command=[WORKER_COMMAND, work.task],
        env=[*environment(POD), *work.variables],
        ports=[PORT],
        resources=RESOURCES,
        security_context=security.of_container(),
        termination_message_path=POD.termination_message,
        termination_message_policy="FallbackToLogsOnError",
        volume_mounts=[
            V1VolumeMount(name="config", mount_path=POD.config, read_only=True),
            V1VolumeMount(name="tmp", mount_path=POD.temp),
            *weights,
        ],
    )


def _weights_mount(work: Work) -> V1VolumeMount:
    return V1VolumeMount(name=WEIGHTS, mount_path=POD.models, read_only=None if work.is_writable else True)


def _volumes(work: Work) -> list[V1Volume]:
    """Return the volumes. The order is a field of the pod itself: a ConfigMap of the object may be pruned before the Job has run."""
    order = V1DownwardAPIVolumeFile(path=SOURCE, field_ref=V1ObjectFieldSelector(field_path=f"metadata.annotations['{ANNOTATION_ORDER}']"))
    volumes = [
        V1Volume(name="config", downward_api=V1DownwardAPIVolumeSource(items=[order])),
        V1Volume(name="tmp", empty_dir=V1EmptyDirVolumeSource(size_limit=SCRATCH_SIZE)),
    ]
    return volumes if work.weights is None else [*volumes, work.weights]
