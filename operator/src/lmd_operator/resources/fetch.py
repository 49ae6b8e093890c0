"""The init container that brings the weights, or verifies them where they are, before the worker starts.

It alone gets the source's token or keys, as environment from Secrets: never as an argument, in a file or in a ConfigMap. What
a Job has put into a shared claim it only looks at, and gets none.
"""

from __future__ import annotations

from kubernetes.client.models.v1_container import V1Container
from kubernetes.client.models.v1_container_port import V1ContainerPort
from kubernetes.client.models.v1_env_var import V1EnvVar
from kubernetes.client.models.v1_env_var_source import V1EnvVarSource
from kubernetes.client.models.v1_resource_requirements import V1ResourceRequirements
from kubernetes.client.models.v1_secret_key_selector import V1SecretKeySelector
from kubernetes.client.models.v1_volume_mount import V1VolumeMount

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.names import (
    ENV_PROGRESS_PORT,
    ENV_SOURCE_FILE,
    ENV_TERMINATION_MESSAGE,
    FETCH_CONTAINER,
    PORT_PROGRESS,
    WORKER_COMMAND,
)
from lmd_operator.rendering.layout import Layout
from lmd_operator.rendering.weights import SOURCE, needs_fetch, remote_source
from lmd_operator.resources import security
from lmd_operator.settings import Settings

RESOURCES = V1ResourceRequirements(requests={"cpu": "500m", "memory": "256Mi"}, limits={"memory": "1Gi"})
"""Measured well below 300 MiB; the limit also holds the page cache of what is written, which the kernel takes back."""
PORT = V1ContainerPort(name="progress", container_port=PORT_PROGRESS, protocol="TCP")
HUB_TOKEN = "HF_TOKEN"
AWS_KEYS = {"AWS_ACCESS_KEY_ID": False, "AWS_SECRET_ACCESS_KEY": False, "AWS_SESSION_TOKEN": True}
"""Variable, which is also the key in the Secret, to whether it may be missing there."""


def fetch_container(deployment: LargeModelDeployment, settings: Settings, layout: Layout) -> V1Container | None:
    """Return the container, or None when there is nothing to fetch or to verify."""
    if not needs_fetch(deployment):
        return None
    is_shared = deployment.spec.model.cache is not None
    return V1Container(
        name=FETCH_CONTAINER,
        image=deployment.spec.template.image or settings.worker_image,
        command=[WORKER_COMMAND, "fetch"],
        env=[*environment(layout), *([] if is_shared else secrets(deployment)), *own_variables(deployment)],
        ports=[PORT],
        resources=RESOURCES,
        security_context=security.of_container(),
        termination_message_path=layout.termination_message,
        termination_message_policy="FallbackToLogsOnError",
        volume_mounts=_mounts(deployment, layout),
    )


def environment(layout: Layout) -> list[V1EnvVar]:
    """Return what `lmd-worker` is told of its container, by name."""
    plain = {
        ENV_SOURCE_FILE: f"{layout.config}/{SOURCE}",
        ENV_TERMINATION_MESSAGE: layout.termination_message,
        ENV_PROGRESS_PORT: str(PORT_PROGRESS),
        "HOME": layout.temp,
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": layout.temp,
    }
    return [V1EnvVar(name=name, value=value) for name, value in sorted(plain.items())]


def own_variables(deployment: LargeModelDeployment) -> list[V1EnvVar]:
    """Return the template's variables, by name: proxies and certificates are among them."""
    return sorted(deployment.spec.template.env, key=lambda variable: variable.name)


def secrets(deployment: LargeModelDeployment) -> list[V1EnvVar]:
    """Return the source's token or keys."""
    source = deployment.spec.model.source
    if source.hugging_face is not None and source.hugging_face.token_secret_ref is not None:
        reference = source.hugging_face.token_secret_ref
        return [_secret(HUB_TOKEN, reference.name, reference.key)]
    if source.s3 is not None and source.s3.credentials_secret_ref is not None:
        name = source.s3.credentials_secret_ref.name
        return [_secret(key, name, key, may_be_missing=may_be_missing) for key, may_be_missing in AWS_KEYS.items()]
    return []


def _secret(variable: str, name: str, key: str, *, may_be_missing: bool = False) -> V1EnvVar:
    selector = V1SecretKeySelector(name=name, key=key, optional=True if may_be_missing else None)
    return V1EnvVar(name=variable, value_from=V1EnvVarSource(secret_key_ref=selector))


def _mounts(deployment: LargeModelDeployment, layout: Layout) -> list[V1VolumeMount]:
    mounts = [
        V1VolumeMount(name="config", mount_path=layout.config, read_only=True),
        V1VolumeMount(name="tmp", mount_path=layout.temp),
    ]
    if remote_source(deployment) is not None and deployment.spec.model.cache is None:
        mounts.append(V1VolumeMount(name="weights", mount_path=layout.models))
    elif deployment.spec.model.source.path is None:
        mounts.append(V1VolumeMount(name="weights", mount_path=layout.models, read_only=True))
    return mounts
