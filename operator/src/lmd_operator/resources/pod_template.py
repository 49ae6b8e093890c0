"""The pod: one replica = one worker container = one TorchServe worker = one group of ranks, behind one front door.

Who wins, between what the operator writes and `spec.template`:

| part | winner |
|---|---|
| names, selectors, ports, probes, lifecycle, volumes, security, device requests, our environment | operator |
| CPU and memory, `/dev/shm` size, image, scheduling, extra labels, annotations and environment | template |
"""

from __future__ import annotations

from kubernetes.client.models.v1_config_map_projection import V1ConfigMapProjection
from kubernetes.client.models.v1_config_map_volume_source import V1ConfigMapVolumeSource
from kubernetes.client.models.v1_container import V1Container
from kubernetes.client.models.v1_empty_dir_volume_source import V1EmptyDirVolumeSource
from kubernetes.client.models.v1_env_var import V1EnvVar
from kubernetes.client.models.v1_exec_action import V1ExecAction
from kubernetes.client.models.v1_http_get_action import V1HTTPGetAction
from kubernetes.client.models.v1_key_to_path import V1KeyToPath
from kubernetes.client.models.v1_lifecycle import V1Lifecycle
from kubernetes.client.models.v1_lifecycle_handler import V1LifecycleHandler
from kubernetes.client.models.v1_local_object_reference import V1LocalObjectReference
from kubernetes.client.models.v1_object_meta import V1ObjectMeta
from kubernetes.client.models.v1_pod_spec import V1PodSpec
from kubernetes.client.models.v1_pod_template_spec import V1PodTemplateSpec
from kubernetes.client.models.v1_probe import V1Probe
from kubernetes.client.models.v1_projected_volume_source import V1ProjectedVolumeSource
from kubernetes.client.models.v1_resource_requirements import V1ResourceRequirements
from kubernetes.client.models.v1_secret_volume_source import V1SecretVolumeSource
from kubernetes.client.models.v1_volume import V1Volume
from kubernetes.client.models.v1_volume_mount import V1VolumeMount
from kubernetes.client.models.v1_volume_projection import V1VolumeProjection

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.names import (
    ANNOTATION_RESTART,
    CONTAINER,
    HANDLER_FILE,
    LABEL_REVISION,
    LIVENESS_PATH,
    READINESS_PATH,
    WORKER_COMMAND,
)
from lmd_operator.planning.plan import Plan
from lmd_operator.rendering.files import CONFIG_PROPERTIES, HAPROXY_CONFIG, RenderedFiles
from lmd_operator.rendering.layout import Layout
from lmd_operator.rendering.weights import SOURCE
from lmd_operator.resources import security
from lmd_operator.resources.common import labels
from lmd_operator.resources.config_map import config_map_name
from lmd_operator.resources.environment import DRAIN_LAG_SECONDS, environment
from lmd_operator.resources.fetch import fetch_container
from lmd_operator.resources.front_door import API_KEYS_VOLUME, front_door_container
from lmd_operator.resources.volumes import weights_volume
from lmd_operator.settings import Settings

STARTUP_PERIOD_SECONDS = 3
"""One probe waits for the model for most of it, and says at once when it is loaded."""
READINESS_PERIOD_SECONDS = 5
LIVENESS_PERIOD_SECONDS = 2
PROBE_SECONDS = 5
"""What the answer to one probe may take."""
GRACE_MARGIN_SECONDS = 15
"""What ending the JVM and the ranks may take after the last answer, in seconds; measured 3 to 8."""
SCRATCH_SIZE = "4Gi"
PARAMETERS_VOLUME = "parameters"


def pod_template(
    deployment: LargeModelDeployment, plan: Plan, files: RenderedFiles, settings: Settings, layout: Layout
) -> V1PodTemplateSpec:
    """Return the template; the table above says who wins."""
    template = deployment.spec.template
    restart = {ANNOTATION_RESTART: deployment.spec.restart} if deployment.spec.restart else {}
    return V1PodTemplateSpec(
        metadata=V1ObjectMeta(
            labels={**template.metadata.labels, **labels(deployment), LABEL_REVISION: files.revision},
            annotations={**template.metadata.annotations, **restart} or None,
        ),
        spec=V1PodSpec(
            automount_service_account_token=False,
            enable_service_links=False,
            service_account_name=template.service_account_name or None,
            priority_class_name=template.priority_class_name or None,
            runtime_class_name=template.runtime_class_name or None,
            image_pull_secrets=[V1LocalObjectReference(name=secret.name) for secret in template.image_pull_secrets] or None,
            node_selector=dict(template.node_selector) or None,
            affinity=template.affinity,
            tolerations=list(template.tolerations) or None,
            topology_spread_constraints=list(template.topology_spread_constraints) or None,
            termination_grace_period_seconds=_grace_seconds(deployment),
            security_context=security.of_pod(),
            init_containers=_init_containers(deployment, settings, layout),
            containers=[_worker(deployment, plan, settings, layout)],
            volumes=_volumes(deployment, files),
        ),
    )


def _worker(deployment: LargeModelDeployment, plan: Plan, settings: Settings, layout: Layout) -> V1Container:
    template = deployment.spec.template
    devices = {deployment.spec.accelerator.resource_name: str(plan.gpus_per_replica)} if plan.gpus_per_replica else {}
    requests, limits = {**template.resources.requests, **devices}, {**template.resources.limits, **devices}
    return V1Container(
        name=CONTAINER,
        image=template.image or settings.worker_image,
        command=[WORKER_COMMAND, "serve"],
        env=[*environment(deployment, plan, settings, layout), *sorted(template.env, key=_name_of)],
        startup_probe=_startup_probe(plan.startup.seconds),
        readiness_probe=_probe(READINESS_PATH, layout, READINESS_PERIOD_SECONDS, failures=1),
        liveness_probe=_probe(LIVENESS_PATH, layout, LIVENESS_PERIOD_SECONDS, failures=2),
        lifecycle=V1Lifecycle(pre_stop=_drain()),
        resources=V1ResourceRequirements(requests=requests or None, limits=limits or None) if requests or limits else None,
        security_context=security.of_container(),
        termination_message_path=layout.termination_message,
        termination_message_policy="FallbackToLogsOnError",
        volume_mounts=_mounts(deployment, layout),
    )


def _init_containers(deployment: LargeModelDeployment, settings: Settings, layout: Layout) -> list[V1Container]:
    """Return what starts before the worker: the fetch, which ends, then the front door, which stays."""
    fetch = fetch_container(deployment, settings, layout)
    return [*([fetch] if fetch is not None else []), front_door_container(deployment, settings, layout)]


def _startup_probe(startup_seconds: int) -> V1Probe:
    """Wait inside the container for the model; one that fails at last leaves its words in an event."""
    failures = -(-startup_seconds // STARTUP_PERIOD_SECONDS)
    probe = V1Probe(period_seconds=STARTUP_PERIOD_SECONDS, timeout_seconds=PROBE_SECONDS, failure_threshold=failures)
    probe.var_exec = V1ExecAction(command=[WORKER_COMMAND, "started"])  # the constructor drops this name (kubernetes 37.0.2)
    return probe


def _probe(path: str, layout: Layout, period_seconds: int, failures: int) -> V1Probe:
    """Ask the worker's own process for probes, as TorchServe listens on loopback."""
    return V1Probe(
        http_get=V1HTTPGetAction(path=path, port=layout.probes_port),
        period_seconds=period_seconds,
        timeout_seconds=PROBE_SECONDS,
        failure_threshold=failures,
    )


def _drain() -> V1LifecycleHandler:
    handler = V1LifecycleHandler()
    handler.var_exec = V1ExecAction(command=[WORKER_COMMAND, "drain"])
    return handler


def _name_of(variable: V1EnvVar) -> str:
    return variable.name


def _grace_seconds(deployment: LargeModelDeployment) -> int:
    """Endpoints catch up, the longest request ends, the processes end."""
    return DRAIN_LAG_SECONDS + deployment.spec.engine.torch_serve.response_timeout_seconds + GRACE_MARGIN_SECONDS


def _mounts(deployment: LargeModelDeployment, layout: Layout) -> list[V1VolumeMount]:
    mounts = [
        V1VolumeMount(name="model-store", mount_path=f"{layout.store}/{deployment.model_name}", read_only=True),
        V1VolumeMount(name="config", mount_path=layout.config, read_only=True),
        V1VolumeMount(name="tmp", mount_path=layout.temp),
        V1VolumeMount(name="shm", mount_path=layout.shared_memory),
    ]
    if _is_on_disk(deployment):
        mounts.append(V1VolumeMount(name=PARAMETERS_VOLUME, mount_path=layout.parameters))
    if deployment.spec.model.source.path is None:
        mounts.append(V1VolumeMount(name="weights", mount_path=layout.models, read_only=True))
    return mounts


def _volumes(deployment: LargeModelDeployment, files: RenderedFiles) -> list[V1Volume]:
    """Return the volumes. The ConfigMap volume is the model directory itself: no archive, no copy, no symlink of ours."""
    name = config_map_name(deployment, files)
    server_items = [V1KeyToPath(key=key, path=key) for key in (CONFIG_PROPERTIES, HAPROXY_CONFIG, SOURCE) if key in files.texts]
    model_items = [V1KeyToPath(key=key, path=path) for key, path in sorted(files.model_files.items())]
    volumes = [
        _model_store(deployment, name, model_items),
        V1Volume(
            name="config",
            config_map=V1ConfigMapVolumeSource(name=name, items=server_items),
        ),
        V1Volume(name="tmp", empty_dir=V1EmptyDirVolumeSource(size_limit=SCRATCH_SIZE)),
        V1Volume(name="shm", empty_dir=V1EmptyDirVolumeSource(medium="Memory", size_limit=deployment.spec.template.shared_memory)),
    ]
    keys = deployment.spec.endpoint.api_keys_secret_ref
    if keys is not None:
        volumes.append(V1Volume(name=API_KEYS_VOLUME, secret=V1SecretVolumeSource(secret_name=keys.name)))
    if _is_on_disk(deployment):
        volumes.append(V1Volume(name=PARAMETERS_VOLUME, empty_dir=V1EmptyDirVolumeSource()))
    weights = weights_volume(deployment)
    return volumes if weights is None else [*volumes, weights]


def _is_on_disk(deployment: LargeModelDeployment) -> bool:
    """Whether parameters are written to a scratch volume and read from it at every step."""
    return deployment.spec.engine.zero_inference.parameters == "Disk"


def _model_store(deployment: LargeModelDeployment, name: str, items: list[V1KeyToPath]) -> V1Volume:
    """Return the model directory; a handler in a ConfigMap of the user's lies in it beside our files."""
    reference = deployment.spec.handler.config_map_ref if deployment.spec.handler is not None else None
    if reference is None:
        return V1Volume(name="model-store", config_map=V1ConfigMapVolumeSource(name=name, items=items))
    ours = V1ConfigMapProjection(name=name, items=items)
    theirs = V1ConfigMapProjection(name=reference.name, items=[V1KeyToPath(key=reference.key, path=HANDLER_FILE)])
    sources = [V1VolumeProjection(config_map=ours), V1VolumeProjection(config_map=theirs)]
    return V1Volume(name="model-store", projected=V1ProjectedVolumeSource(sources=sources))
