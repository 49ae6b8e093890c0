"""The object: `LargeModelDeployment`, one model service. These models are the API; the CRD is generated from them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from lmd_operator.api.base import ApiModel, Rule
from lmd_operator.api.engine import Accelerator, CustomHandler, Engine, Parallelism
from lmd_operator.api.model import Model
from lmd_operator.api.pods import Autoscaling, Endpoint, PodTemplate, Rollout
from lmd_operator.api.status import Status

GROUP = "largemodel.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LargeModelDeployment"
PLURAL = "largemodeldeployments"
SINGULAR = "largemodeldeployment"
SHORT_NAME = "lmd"
NAME_MAX_LENGTH = 52
"""Children append up to eleven characters, and a Service's name may have 63."""


class Spec(ApiModel):
    """What the service should be."""

    model: Model
    """Which model is served and where its weights come from."""
    parallelism: Parallelism = Parallelism()
    """How one replica is split over devices."""
    engine: Engine = Engine()
    """How tokens are computed."""
    accelerator: Accelerator = Accelerator()
    """The devices one replica runs on."""
    handler: CustomHandler | None = None
    """A TorchServe handler of your own. Default: the one of the worker image, which runs the strategies."""
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Independent copies of the model, one pod each. The scale subresource writes this field; the operator never does."""
    rollout: Rollout = Rollout()
    """How pods are replaced."""
    autoscaling: Autoscaling | None = None
    """Replicas by load. Default: `replicas` is fixed."""
    endpoint: Endpoint = Endpoint()
    """Where clients reach the model."""
    restart: Annotated[str, StringConstraints(max_length=63)] = ""
    """Any text; a change rolls the pods once."""
    suspend: bool = False
    """Stop all pods and keep everything else. The replica count is remembered."""
    template: PodTemplate = PodTemplate()
    """What a platform adds to the pods."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="handler.archive",
            message="lies on the model's volume: set model.source to persistentVolumeClaim or path",
            cel="!has(self.handler) || !has(self.handler.archive) "
            "|| has(self.model.source.persistentVolumeClaim) || has(self.model.source.path)",
            holds=lambda self: (
                self.handler is None
                or self.handler.archive is None
                or self.model.source.persistent_volume_claim is not None
                or self.model.source.path is not None
            ),
        ),
        Rule(
            field="engine.dtype",
            message="float16 does not run on CPU: choose bfloat16 or float32",
            cel="self.accelerator.type != 'CPU' || self.engine.dtype != 'float16'",
            holds=lambda self: self.accelerator.type != "CPU" or self.engine.dtype != "float16",
        ),
        Rule(
            field="replicas",
            message="is set by autoscaling between minReplicas and maxReplicas: keep it in that range",
            cel="!has(self.autoscaling) "
            "|| (self.replicas >= self.autoscaling.minReplicas && self.replicas <= self.autoscaling.maxReplicas)",
            holds=lambda self: self.autoscaling is None or self.autoscaling.min_replicas <= self.replicas <= self.autoscaling.max_replicas,
        ),
    )


class Metadata(ApiModel):
    """The parts of the object's metadata that the operator reads."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=NAME_MAX_LENGTH, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
    """Name of the service and of its children; a lower-case DNS label that starts with a letter."""
    namespace: Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")] = "default"
    """Namespace of the object and its children."""
    uid: str = ""
    """Identity given by the API server."""
    generation: int = 0
    """Counts changes of the spec."""
    labels: dict[str, str] = {}
    """Labels of the object."""
    annotations: dict[str, str] = {}
    """Annotations of the object."""


class LargeModelDeployment(ApiModel):
    """A large model, served: one manifest is the whole service."""

    api_version: Literal["largemodel.dev/v1alpha1"] = "largemodel.dev/v1alpha1"
    kind: Literal["LargeModelDeployment"] = "LargeModelDeployment"
    metadata: Metadata
    spec: Spec
    status: Status = Status()

    @property
    def model_name(self) -> str:
        """The name clients use for the model."""
        return self.spec.model.name or self.metadata.name
