"""The front door's container: HAProxy beside the worker, as a sidecar that starts before it and ends after it.

An init container that restarts is what Kubernetes calls a native sidecar (1.29 and newer): while the worker drains and
ends, answers still pass through it.
"""

from __future__ import annotations

from kubernetes.client.models.v1_container import V1Container
from kubernetes.client.models.v1_container_port import V1ContainerPort
from kubernetes.client.models.v1_env_var import V1EnvVar
from kubernetes.client.models.v1_http_get_action import V1HTTPGetAction
from kubernetes.client.models.v1_probe import V1Probe
from kubernetes.client.models.v1_resource_requirements import V1ResourceRequirements
from kubernetes.client.models.v1_volume_mount import V1VolumeMount

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.names import (
    COMMAND_FRONT_DOOR,
    ENV_API_KEYS_DIR,
    ENV_CONFIG_DIR,
    ENV_RUN_DIR,
    FRONT_DOOR,
    PORT_API,
    PORT_OPERATIONS,
    WORKER_COMMAND,
)
from lmd_operator.rendering.layout import Layout
from lmd_operator.resources import security
from lmd_operator.settings import Settings

API_KEYS_VOLUME = "api-keys"
RESOURCES = V1ResourceRequirements(requests={"cpu": "20m", "memory": "64Mi"}, limits={"memory": "256Mi"})
"""HAProxy and the process that looks after it hold 25 MiB at rest."""
START_SECONDS = 30
"""What HAProxy may take to start on a busy node; it takes half a second on an idle one."""


def front_door_container(deployment: LargeModelDeployment, settings: Settings, layout: Layout) -> V1Container:
    """Return the sidecar. It has the worker's image, so that one image is one version of both."""
    has_keys = deployment.spec.endpoint.api_keys_secret_ref is not None
    variables = {ENV_CONFIG_DIR: layout.config, ENV_RUN_DIR: layout.run, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": layout.temp}
    mounts = [
        V1VolumeMount(name="config", mount_path=layout.config, read_only=True),
        V1VolumeMount(name="tmp", mount_path=layout.temp),
    ]
    if has_keys:
        variables[ENV_API_KEYS_DIR] = layout.api_keys
        mounts.append(V1VolumeMount(name=API_KEYS_VOLUME, mount_path=layout.api_keys, read_only=True))
    return V1Container(
        name=FRONT_DOOR,
        image=deployment.spec.template.image or settings.worker_image,
        command=[WORKER_COMMAND, COMMAND_FRONT_DOOR],
        restart_policy="Always",
        env=[V1EnvVar(name=name, value=value) for name, value in sorted(variables.items())],
        ports=[
            V1ContainerPort(name=PORT_API, container_port=layout.api_port, protocol="TCP"),
            V1ContainerPort(name=PORT_OPERATIONS, container_port=layout.operations_port, protocol="TCP"),
        ],
        readiness_probe=_probe("/readyz", layout, period_seconds=1, failures=1),
        # no start-up probe: the worker, which loads for longer than HAProxy starts, would wait a second or two for its success
        liveness_probe=_probe("/livez", layout, period_seconds=5, failures=3, initial_delay_seconds=START_SECONDS),
        resources=RESOURCES,
        security_context=security.of_container(),
        termination_message_policy="FallbackToLogsOnError",
        volume_mounts=mounts,
    )


def _probe(path: str, layout: Layout, period_seconds: int, failures: int, initial_delay_seconds: int | None = None) -> V1Probe:
    """Ask the front door over HTTP; by number, as a sidecar's ports have no names everywhere."""
    return V1Probe(
        http_get=V1HTTPGetAction(path=path, port=layout.operations_port),
        initial_delay_seconds=initial_delay_seconds,
        period_seconds=period_seconds,
        timeout_seconds=3,
        failure_threshold=failures,
    )
