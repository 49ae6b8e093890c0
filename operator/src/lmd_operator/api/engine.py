"""`spec.parallelism`, `spec.engine`, `spec.accelerator`, `spec.handler`: how the model is cut and run."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from lmd_operator.api.base import ApiModel, Rule
from lmd_operator.api.text import DegreeOrAuto, DnsName, Quantity, SecretKey

Strategy = Literal["Auto", "DeepSpeed", "Tensor", "Expert", "Pipeline", "PipelineTensor", "Accelerate", "ZeroInference", "None"]
DataType = Literal["bfloat16", "float16", "float32"]


def _one_process(self: Parallelism) -> bool:
    return self.strategy not in ("None", "Accelerate") or (self.tensor in (1, "Auto") and self.pipeline == 1 and self.expert == 1)


class Parallelism(ApiModel):
    """How one replica is split over devices. Each degree is written once; everything else derives from it."""

    strategy: Strategy = "Auto"
    """Which engine cuts the model. `Auto` chooses and says why: one device gives None, more give DeepSpeed, stages a pipeline.
    A change rolls the pods."""
    tensor: DegreeOrAuto = 1
    """Tensor-parallel degree: devices that share every layer. It sets the GPU request, the ranks and `tp_size`. `Auto` plans it."""
    pipeline: Annotated[int, Field(ge=1, le=256)] = 1
    """Pipeline degree: stages among which the layers are dealt out, each of `tensor` devices. Default 1: no pipeline."""
    expert: Annotated[int, Field(ge=1, le=256)] = 1
    """Expert-parallel degree of a mixture-of-experts model: the ranks of strategy Expert. Default 1: experts are not spread."""
    data: Annotated[int, Field(ge=1, le=256)] = 1
    """Ranks of strategy ZeroInference: they share the parameters, and each decodes requests of its own. Default 1."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="strategy",
            message="runs one process: set tensor, pipeline and expert to 1, or choose another strategy",
            cel="!(self.strategy in ['None', 'Accelerate']) "
            "|| ((self.tensor == 1 || self.tensor == 'Auto') && self.pipeline == 1 && self.expert == 1)",
            holds=_one_process,
        ),
        Rule(
            field="pipeline",
            message="is above 1, which needs strategy Pipeline, PipelineTensor or Auto",
            cel="self.pipeline == 1 || self.strategy in ['Pipeline', 'PipelineTensor', 'Auto', 'None', 'Accelerate']",
            holds=lambda self: self.pipeline == 1 or self.strategy in ("Pipeline", "PipelineTensor", "Auto", "None", "Accelerate"),
        ),
        Rule(
            field="expert",
            message="is above 1, which needs strategy Expert or Auto",
            cel="self.expert == 1 || self.strategy in ['Expert', 'Auto', 'None', 'Accelerate']",
            holds=lambda self: self.expert == 1 or self.strategy in ("Expert", "Auto", "None", "Accelerate"),
        ),
        Rule(
            field="tensor",
            message="is 1, but this strategy cuts every layer over several devices: set it to 2 or more, or choose strategy None",
            cel="!(self.strategy in ['DeepSpeed', 'Tensor']) || self.tensor != 1",
            holds=lambda self: self.strategy not in ("DeepSpeed", "Tensor") or self.tensor != 1,
        ),
        Rule(
            field="expert",
            message="is 1, but strategy Expert spreads the experts over several devices: set it to 2 or more, or choose strategy None",
            cel="self.strategy != 'Expert' || self.expert != 1",
            holds=lambda self: self.strategy != "Expert" or self.expert != 1,
        ),
        Rule(
            field="tensor",
            message="differs from expert, but under strategy Expert the same ranks cut what is not an expert: remove it",
            cel="self.strategy != 'Expert' || self.tensor == 1 || self.tensor == 'Auto' || self.tensor == self.expert",
            holds=lambda self: self.strategy != "Expert" or self.tensor in (1, "Auto", self.expert),
        ),
        Rule(
            field="tensor",
            message="is above 1, but strategy ZeroInference does not cut layers: set it to 1, and data to the number of ranks",
            cel="self.strategy != 'ZeroInference' || self.tensor == 1 || self.tensor == 'Auto'",
            holds=lambda self: self.strategy != "ZeroInference" or self.tensor in (1, "Auto"),
        ),
        Rule(
            field="data",
            message="is above 1, which needs strategy ZeroInference: set it to 1, or spec.replicas for more copies of the model",
            cel="self.data == 1 || self.strategy == 'ZeroInference'",
            holds=lambda self: self.data == 1 or self.strategy == "ZeroInference",
        ),
        Rule(
            field="tensor",
            message="is above 1, but strategy Pipeline does not cut layers: set it to 1, or choose PipelineTensor",
            cel="self.strategy != 'Pipeline' || self.tensor == 1 || self.tensor == 'Auto'",
            holds=lambda self: self.strategy != "Pipeline" or self.tensor in (1, "Auto"),
        ),
        Rule(
            field="pipeline",
            message="is 1, but this strategy deals the layers out over stages: set it to 2 or more, or choose strategy Tensor or None",
            cel="!(self.strategy in ['Pipeline', 'PipelineTensor']) || self.pipeline != 1 || self.tensor == 'Auto'",
            holds=lambda self: self.strategy not in ("Pipeline", "PipelineTensor") or self.pipeline != 1 or self.tensor == "Auto",
        ),
        Rule(
            field="tensor",
            message="is 1, but strategy PipelineTensor cuts the layers of every stage: set it to 2 or more, or choose strategy Pipeline",
            cel="self.strategy != 'PipelineTensor' || self.tensor != 1",
            holds=lambda self: self.strategy != "PipelineTensor" or self.tensor != 1,
        ),
    )


class DeepSpeedOptions(ApiModel):
    """Inference options of DeepSpeed that are the user's to choose; what derives from other fields cannot be set here."""

    tensor_parallel_grain_size: Annotated[int, Field(ge=1, le=65536)] = 64
    """Granularity, in columns, at which feed-forward layers and the output head are cut (`tensor_parallel.tp_grain_size`)."""
    keep_module_on_host: bool = False
    """Leave the shards in host memory (`keep_module_on_host`). Slow; for debugging a model that does not fit."""
    replace_with_kernel_inject: bool = False
    """DeepSpeed's fused kernels. Refused: they do not work with transformers 5."""
    enable_cuda_graph: bool = False
    """DeepSpeed's CUDA graphs. Refused with more than one rank: they freeze shapes and cannot grow a cache."""


class AccelerateOptions(ApiModel):
    """Where the weights of a model that is larger than its device are kept."""

    host_memory: Quantity | None = None
    """Most host memory that weights may take; what is left stays on disk and is read at every step. Default: what the pod has free."""


class ZeroInferenceOptions(ApiModel):
    """Where the parameters of strategy ZeroInference wait, and how small they are."""

    parameters: Literal["Host", "Disk"] = "Host"
    """Host keeps them in host memory. Disk writes them to a scratch volume of the pod while loading and reads them at every step;
    it needs DeepSpeed's operation async_io in the worker image, and a fast disk."""
    buffer_parameters: Annotated[int, Field(ge=1_000_000, le=100_000_000_000)] = 100_000_000
    """Disk: parameters that one of five buffers in host memory holds; no less than a rank's part of the largest tensor."""
    weights: Literal["Full", "Int8", "Int4"] = "Full"
    """Full keeps weights in the data type. Int8 and Int4 make linear layers and embeddings smaller while they are loaded, in groups of 64
    with a scale and a minimum each; tokens are then not those of the whole model. Not for mixtures of experts."""


class TorchServeOptions(ApiModel):
    """Limits of the serving frontend."""

    response_timeout_seconds: Annotated[int, Field(ge=1, le=86400)] = 300
    """Longest wait between two parts of an answer, in seconds. A rank that is silent for longer is restarted."""
    startup_timeout_seconds: Annotated[int, Field(ge=1, le=86400)] | None = None
    """Longest time from container start to a loaded model, in seconds. Default: where the model was inspected (parallelism.tensor: Auto),
    600 plus what reading its weights takes at 100 MiB/s, otherwise 1800; `status.startup` has the sum and what loading really took."""
    job_queue_size: Annotated[int, Field(ge=1, le=100000)] = 100
    """Requests that may wait in one pod beyond those being decoded; more are refused at once, with the seconds to wait (429)."""


class Engine(ApiModel):
    """How tokens are computed. Any change rolls the pods."""

    dtype: DataType = "bfloat16"
    """Number format of weights and activations. On CPU: bfloat16 or float32."""
    scheduler: Literal["Continuous", "Static"] = "Continuous"
    """Continuous lets requests join and leave at every token. Static decodes a batch to its end before the next; a model that cannot
    be decoded continuously is served so by itself, and its ranks report why."""
    context_tokens: Annotated[int, Field(ge=16, le=10_000_000)] | None = None
    """Longest prompt plus answer, in tokens. Default: the model's own limit, at most 8192."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 8
    """Requests decoded together in one replica; more wait in the queue. Each costs cache memory for its context."""
    prefix_caching: bool = True
    """Keep keys and values of what was read, so that a prompt which begins like an earlier one, or goes on from an answer, is read from
    where they differ. Costs no memory, as only pages that nobody needs are kept. With false, how long a client waits tells it nothing
    about the prompts of others. Only for Continuous."""
    deepspeed: DeepSpeedOptions = DeepSpeedOptions()
    """Options of DeepSpeed."""
    accelerate: AccelerateOptions = AccelerateOptions()
    """Options of strategy Accelerate."""
    zero_inference: ZeroInferenceOptions = ZeroInferenceOptions()
    """Options of strategy ZeroInference."""
    torch_serve: TorchServeOptions = TorchServeOptions()
    """Limits of the serving frontend."""


class Accelerator(ApiModel):
    """The devices one replica runs on."""

    type: Literal["Nvidia", "CPU"] = "Nvidia"
    """Nvidia requests GPUs, one a rank. CPU runs every rank on the host's cores, for small models and for trying things out."""
    resource_name: Annotated[str, StringConstraints(max_length=253, pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")] = "nvidia.com/gpu"
    """Extended resource that stands for one whole GPU. Ignored on CPU."""
    memory: Quantity | None = None
    """Memory of one device, for the planner. Default: unknown."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="memory",
            message="describes a GPU; remove it for type CPU and set template.resources.limits.memory instead",
            cel="self.type != 'CPU' || !has(self.memory)",
            holds=lambda self: self.type != "CPU" or self.memory is None,
        ),
    )


class ConfigMapKeyReference(ApiModel):
    """One key of a ConfigMap in the object's namespace."""

    name: DnsName
    """Name of the ConfigMap."""
    key: SecretKey = "handler.py"
    """Key that holds the Python source."""


class CustomHandler(ApiModel):
    """A TorchServe handler of the user's own instead of ours. Exactly one is set."""

    config_map_ref: ConfigMapKeyReference | None = None
    """Source in a ConfigMap."""
    module: Annotated[str, StringConstraints(max_length=255, pattern=r"^[A-Za-z_][A-Za-z0-9_.]*(:[A-Za-z_][A-Za-z0-9_]*)?$")] | None = None
    """Python module of the worker image, optionally with a function: `package.module:function`."""
    archive: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    """A `.mar` file or model directory on the model's volume, relative to its root."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="",
            message="must set exactly one of configMapRef, module, archive",
            cel="[has(self.configMapRef), has(self.module), has(self.archive)].filter(given, given).size() == 1",
            holds=lambda self: sum(value is not None for _, value in self) == 1,
        ),
        Rule(
            field="archive",
            message="must be a path inside the volume: remove a leading '/' and every '..' segment",
            cel="!has(self.archive) || (!self.archive.startsWith('/') && !self.archive.split('/').exists(part, part == '..'))",
            holds=lambda self: self.archive is None or not (self.archive.startswith("/") or ".." in self.archive.split("/")),
        ),
    )
