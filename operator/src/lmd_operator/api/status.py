"""`status`: what the operator found. Written only by the operator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from lmd_operator.api.base import ApiModel

Text = Annotated[str, StringConstraints(max_length=32768)]
Name = Annotated[str, StringConstraints(max_length=317)]
Count = Annotated[int, Field(ge=0)]
ConditionType = Literal["Accepted", "Planned", "ParallelismVerified", "Ready", "Reconciling", "Stalled"]


class Condition(ApiModel):
    """One aspect of the service's state, in the standard Kubernetes form."""

    type: ConditionType
    """Which aspect."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """One CamelCase word for machines."""
    message: Text = ""
    """A sentence for people: what is so, and what to do about it."""
    observed_generation: Count = 0
    """Generation of the spec this was said about."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When `status` last changed."""


class Revision(ApiModel):
    """One rendered configuration of the past."""

    name: Name
    """Content hash of the rendered files."""
    config_map: Name
    """ConfigMap that holds them."""


class Revisions(ApiModel):
    """Which configuration runs and which is rolling out."""

    current: Name = ""
    """The revision all ready replicas run."""
    updated: Name = ""
    """The revision the spec asks for."""
    history: Annotated[list[Revision], Field(max_length=101)] = []
    """Kept revisions, newest first."""


class ModelFacts(ApiModel):
    """What was read from the model's own files."""

    source: Name = ""
    """Which source it was read from, at which revision of the spec: it holds until that changes."""
    revision: Name = ""
    """What the source's revision stood for then. Empty where the source has no revisions."""
    family: Name = ""
    """Model type of its configuration, for example `llama`."""
    parameters: Count = 0
    """Number of parameters."""
    bytes: Count = 0
    """Size of the weight files, in bytes."""
    heads: Count = 0
    """Attention heads."""
    key_value_heads: Count = 0
    """Key-value heads."""
    layers: Count = 0
    """Layers."""
    experts: Count = 0
    """Experts of a layer; 0 for dense models."""
    context_tokens: Count = 0
    """Longest context the model was made for, in tokens."""
    outline: Annotated[str, StringConstraints(max_length=8192)] = ""
    """Configuration and kinds of tensors, for the planner: JSON, deflated, in Base64. Only where a plan was asked for."""


class WeightsStatus(ApiModel):
    """Weights that are fetched from their source, on the replica that has the least of them."""

    revision: Name = ""
    """What the source's revision stood for when it was fetched: a commit of the hub, or a digest over the objects of a store."""
    bytes: Count = 0
    """Bytes that are there."""
    total_bytes: Count = 0
    """Bytes in all; 0 until the source has answered."""
    percent: Annotated[int, Field(ge=0, le=100)] = 0
    """How much of them is there."""
    bytes_per_second: Count = 0
    """Speed over the last seconds; 0 when nothing moves or everything is there."""
    remaining_seconds: Count | None = None
    """Time left at this speed, in seconds. Absent while nothing moves."""


class MemoryPlan(ApiModel):
    """Memory of one device as planned, in GiB."""

    weights_gi_b: Annotated[float, Field(ge=0, alias="weightsGiB")] = 0.0
    """Weights one rank holds."""
    key_value_gi_b: Annotated[float, Field(ge=0, alias="keyValueGiB")] = 0.0
    """Key-value cache for all concurrent requests."""
    overhead_gi_b: Annotated[float, Field(ge=0, alias="overheadGiB")] = 0.0
    """Workspace of the libraries and headroom."""
    limit_gi_b: Annotated[float, Field(ge=0, alias="limitGiB")] = 0.0
    """Memory of the device that may be used; 0 where the object does not name it."""
    fits: bool = True
    """Whether the sum is below the limit, as far as that is known."""


class PlanStatus(ApiModel):
    """The parallelism that was settled, and why."""

    strategy: Name = ""
    """The strategy that runs."""
    tensor: Count = 0
    """Tensor-parallel degree."""
    pipeline: Count = 0
    """Pipeline degree."""
    data: Count = 0
    """Ranks that each decode requests of their own."""
    gpus_per_replica: Count = 0
    """Devices one replica requests."""
    reason: Text = ""
    """Why this and not another."""
    memory: MemoryPlan | None = None
    """Memory per device, once the model's shape is known."""


class StartupStatus(ApiModel):
    """How long a replica may take from container start to a loaded model, and how long it took."""

    limit_seconds: Count = 0
    """A replica that is not loaded after so many seconds is started again."""
    sum: Text = ""
    """How the limit came about."""
    measured_seconds: Count | None = None
    """What reading, cutting and testing the model took on the slowest rank that has told, in seconds. Absent until one has."""


class Status(ApiModel):
    """The state of the service as the operator last saw it."""

    observed_generation: Count = 0
    """Generation of the spec this status answers."""
    replicas: Count = 0
    """Pods that exist."""
    ready_replicas: Count = 0
    """Pods that answer requests."""
    selector: Annotated[str, StringConstraints(max_length=1024)] = ""
    """Label selector of the pods, for the scale subresource."""
    url: Annotated[str, StringConstraints(max_length=2048)] = ""
    """Base URL inside the cluster."""
    revision: Revisions = Revisions()
    """Rendered configurations."""
    model: ModelFacts | None = None
    """What is known about the model."""
    weights: WeightsStatus | None = None
    """How far the weights are. Absent for models that are not fetched."""
    plan: PlanStatus | None = None
    """The settled parallelism."""
    startup: StartupStatus | None = None
    """How long loading may take, and took."""
    conditions: Annotated[
        list[Condition], Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]})
    ] = []
    """The set of conditions; all are present from the first write."""
