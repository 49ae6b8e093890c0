"""`spec.template`, `rollout`, `autoscaling`, `endpoint`: the pods around the model and how they are reached and replaced."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from kubernetes.client.models.v1_affinity import V1Affinity
from kubernetes.client.models.v1_env_var import V1EnvVar
from kubernetes.client.models.v1_toleration import V1Toleration
from kubernetes.client.models.v1_topology_spread_constraint import V1TopologySpreadConstraint
from pydantic import Field, StringConstraints

from lmd_operator.api.base import ApiModel, Rule
from lmd_operator.api.model import SecretReference
from lmd_operator.api.text import CountOrPercent, DnsName, ImageReference, LabelKey, LabelValue, Quantity

Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=64)]
Annotations = Annotated[dict[LabelKey, Annotated[str, StringConstraints(max_length=65536)]], Field(max_length=64)]
ResourceList = Annotated[dict[Annotated[str, StringConstraints(min_length=1, max_length=253)], Quantity], Field(max_length=32)]


class PodMetadata(ApiModel):
    """Labels and annotations added to the pods; the operator's own keys cannot be overridden."""

    labels: Labels = {}
    """Extra labels."""
    annotations: Annotations = {}
    """Extra annotations."""


class ResourceRequirements(ApiModel):
    """Compute resources of the worker container besides its accelerators, which derive from the parallelism."""

    requests: ResourceList = {}
    """Minimum amounts, as in a pod."""
    limits: ResourceList = {}
    """Maximum amounts, as in a pod. Memory must hold every rank's host-side load peak, the JVM and `/dev/shm`."""


class PodTemplate(ApiModel):
    """What a platform adds to the pods. The operator wins over it for names, selectors, ports, probes, security and devices."""

    metadata: PodMetadata = PodMetadata()
    """Extra labels and annotations."""
    image: ImageReference | None = None
    """Worker image. Default: the one the operator was released with."""
    resources: ResourceRequirements = ResourceRequirements()
    """CPU and memory of the worker container. Accelerators are not set here."""
    shared_memory: Quantity = "8Gi"
    """Size of the memory-backed `/dev/shm`, which counts against the memory limit. Ranks exchange tensors through it."""
    node_selector: Labels = {}
    """Labels a node must have."""
    tolerations: Annotated[list[V1Toleration], Field(max_length=64)] = []
    """Taints the pods tolerate, as in a pod."""
    affinity: V1Affinity | None = None
    """Scheduling affinity, as in a pod."""
    topology_spread_constraints: Annotated[list[V1TopologySpreadConstraint], Field(max_length=16)] = []
    """How replicas spread over zones and nodes, as in a pod."""
    priority_class_name: DnsName | Literal[""] = ""
    """Priority class of the pods."""
    service_account_name: DnsName | Literal[""] = ""
    """Service account of the pods. No token is mounted."""
    image_pull_secrets: Annotated[list[SecretReference], Field(max_length=16)] = []
    """Secrets for pulling images."""
    runtime_class_name: DnsName | Literal[""] = ""
    """Runtime class of the pods, for example `nvidia`."""
    env: Annotated[list[V1EnvVar], Field(max_length=128)] = []
    """Extra environment of the worker, as in a pod. Variables the operator sets cannot be overridden."""


class Rollout(ApiModel):
    """How pods are replaced when the revision changes."""

    strategy: Literal["Auto", "RollingUpdate", "Recreate"] = "Auto"
    """Auto starts a new pod beside the old ones, and where there is no room for it replaces them one by one. Recreate stops all first."""
    max_surge: CountOrPercent | None = None
    """Pods above `replicas` during a rolling update. Default: chosen by the strategy."""
    max_unavailable: CountOrPercent | None = None
    """Pods that may be missing during a rolling update. Default: chosen by the strategy."""
    revision_history_limit: Annotated[int, Field(ge=1, le=100)] = 5
    """Old revisions kept for a rollback."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="strategy",
            message="is not RollingUpdate, so maxSurge and maxUnavailable have no meaning: remove them, or choose RollingUpdate",
            cel="self.strategy == 'RollingUpdate' || (!has(self.maxSurge) && !has(self.maxUnavailable))",
            holds=lambda self: self.strategy == "RollingUpdate" or (self.max_surge is None and self.max_unavailable is None),
        ),
        Rule(
            field="maxUnavailable",
            message="and maxSurge are both zero, so nothing could ever be replaced: raise one of them",
            cel="!has(self.maxSurge) || !has(self.maxUnavailable) || !(self.maxSurge == 0 || self.maxSurge == '0%') "
            "|| !(self.maxUnavailable == 0 || self.maxUnavailable == '0%')",
            holds=lambda self: not (self.max_surge in (0, "0%") and self.max_unavailable in (0, "0%")),
        ),
    )


class Autoscaling(ApiModel):
    """Replicas by load."""

    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Fewest replicas."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Most replicas."""
    target_queued_requests: Annotated[int, Field(ge=1, le=100000)] = 4
    """Waiting requests per replica at which another replica is added."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="maxReplicas",
            message="must be at least minReplicas",
            cel="self.maxReplicas >= self.minReplicas",
            holds=lambda self: self.max_replicas >= self.min_replicas,
        ),
    )


class ServiceOptions(ApiModel):
    """The Service in front of the replicas."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """How the Service is published."""
    annotations: Annotations = {}
    """Annotations of the Service, for load balancers."""


class Endpoint(ApiModel):
    """Where clients reach the model."""

    port: Annotated[int, Field(ge=1, le=65535)] = 80
    """Port of the Service."""
    api_keys_secret_ref: SecretReference | None = None
    """Secret whose values are the accepted API keys, sent as bearer tokens; changes take effect without a restart.
    Default: no key is asked for."""
    service: ServiceOptions = ServiceOptions()
    """The Service itself."""
