"""A container of a pod, read from the built Deployment: what a kubelet would mount, start and probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubernetes.client.models.v1_config_map import V1ConfigMap
from kubernetes.client.models.v1_container import V1Container
from kubernetes.client.models.v1_deployment import V1Deployment
from kubernetes.client.models.v1_pod_spec import V1PodSpec
from kubernetes.client.models.v1_probe import V1Probe
from kubernetes.client.models.v1_volume import V1Volume

from lmd_operator.errors import LocalRunError
from lmd_operator.resources.desired import Desired

SIDECAR = "Always"
"""Restart policy of an init container that stays: the front door, which does not run here."""


@dataclass(frozen=True, slots=True)
class InitCommand:
    """An init container: its command, its variables, and the names of those whose values a Secret would hold."""

    command: Sequence[str]
    environment: Mapping[str, str]
    secrets: Sequence[str]


@dataclass(frozen=True, slots=True)
class Liveness:
    """The liveness probe: GET `path` at `port` of this machine's loopback every `period_seconds`, until `failures` in a row."""

    port: int
    path: str
    period_seconds: int
    timeout_seconds: int
    failures: int


@dataclass(frozen=True, slots=True)
class LocalContainer:
    """What is needed to run a container without a cluster.

    `startup_seconds` is the whole budget of the startup probe; what is asked how often for liveness is the
    pod's own. The front door does not run here: clients of this machine reach the worker itself.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    started_command: Sequence[str]
    init_commands: Sequence[InitCommand]
    startup_seconds: int
    liveness: Liveness
    termination_message: Path


def materialise(desired: Desired, given: Mapping[str, Path] | None = None) -> LocalContainer:
    """Write every ConfigMap volume where it is mounted, make the scratch folders, and return the worker container.

    `given` are local directories that stand for ConfigMaps of the user's. Variables taken from Secrets or fields of a pod have
    no value here and are left out.
    """
    deployment = next(resource for resource in desired.resources if isinstance(resource, V1Deployment))
    config_maps = {_name(resource): resource for resource in desired.resources if isinstance(resource, V1ConfigMap)}
    pod = _pod(deployment)
    container = pod.containers[0]
    volumes = {volume.name: volume for volume in pod.volumes or []}
    for mount in container.volume_mounts or []:
        _mount(volumes[mount.name], Path(mount.mount_path), config_maps, given or {})
    message = Path(container.termination_message_path or "")
    message.parent.mkdir(parents=True, exist_ok=True)
    return _local(container, [_init(each) for each in pod.init_containers or [] if each.restart_policy != SIDECAR], message)


def _init(container: V1Container) -> InitCommand:
    variables = container.env or []
    return InitCommand(
        command=container.command or [],
        environment={variable.name: variable.value for variable in variables if variable.value is not None},
        secrets=[variable.name for variable in variables if variable.value_from is not None],
    )


def _local(container: V1Container, init_commands: Sequence[InitCommand], message: Path) -> LocalContainer:
    startup = container.startup_probe
    if not (startup and startup.var_exec and startup.period_seconds and startup.failure_threshold):
        raise TypeError("the worker container has no startup probe by command")
    return LocalContainer(
        command=container.command or [],
        environment={variable.name: variable.value for variable in container.env or [] if variable.value is not None},
        started_command=startup.var_exec.command or [],
        init_commands=init_commands,
        startup_seconds=startup.period_seconds * startup.failure_threshold,
        liveness=_liveness(container.liveness_probe),
        termination_message=message,
    )


def _liveness(probe: V1Probe | None) -> Liveness:
    if not (
        probe and probe.http_get and probe.http_get.path and probe.period_seconds and probe.timeout_seconds and probe.failure_threshold
    ):
        raise TypeError("the worker container has no liveness probe by HTTP")
    return Liveness(
        port=int(probe.http_get.port),
        path=probe.http_get.path,
        period_seconds=probe.period_seconds,
        timeout_seconds=probe.timeout_seconds,
        failures=probe.failure_threshold,
    )


def _pod(deployment: V1Deployment) -> V1PodSpec:
    if deployment.spec is None or deployment.spec.template.spec is None:
        raise TypeError("the Deployment has no pod")
    return deployment.spec.template.spec


def _name(config_map: V1ConfigMap) -> str:
    return (config_map.metadata.name if config_map.metadata else None) or ""


def _mount(volume: V1Volume, target: Path, config_maps: Mapping[str, V1ConfigMap], given: Mapping[str, Path]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    projected = (volume.projected.sources or []) if volume.projected else []
    sources = [source.config_map for source in projected] if projected else [volume.config_map]
    for source in sources:  # anything else is scratch space, or a claim, which is a local directory already
        if source is None:
            continue
        name = source.name or ""
        for item in source.items or []:
            path = target / item.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text((config_maps[name].data or {})[item.key] if name in config_maps else _given(name, item.key, given))


def _given(name: str, key: str, given: Mapping[str, Path]) -> str:
    """Return the text that stands for a key of a user's ConfigMap. Raises `LocalRunError` naming the option."""
    if name not in given:
        raise LocalRunError(
            f"the handler is in the ConfigMap {name}, which exists only in a cluster: name a local directory with {key} in it by "
            f"--config-map {name}=DIRECTORY"
        )
    try:
        return (given[name] / key).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LocalRunError(f"{given[name] / key} cannot be read: put the handler there") from error
