"""Strategy ZeroInference: DeepSpeed stage 3 without an optimizer, driven by the rendered ds-config.json, which is the whole configuration.

Every parameter is dealt out evenly over the ranks and waits in host memory or on disk; it is put together on all devices for the moment in
which its layer is computed. Each rank computes whole layers for requests of its own, so all ranks have to take the same steps, which the
engine sees to. A single rank keeps all parameters and takes them to its device one by one.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmd_worker.errors import ModelRefusedError, SettingsError
from lmd_worker.ranks import Group, limit_patience
from lmd_worker.settings import Settings, read_deepspeed_config
from lmd_worker.shape import ModelShape
from lmd_worker.strategies import families, joining
from lmd_worker.strategies.reading import read_model
from lmd_worker.strategies.share import Share
from lmd_worker.strategies.single import guard_causal

_PLACES = ("cpu", "nvme")
_FLAGS = {"bfloat16": "bf16", "float16": "fp16"}
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_GIB = 2**30
_NOT_LINEAR = {"gpt2": "its layers are Conv1D"}
"""Families whose weights are in modules that DeepSpeed does not quantize (0.19.8, inference/quantization/utils.py: Linear, Embedding)."""


def guard(shape: ModelShape, settings: Settings) -> None:
    """Refuse, before any weight is read, what DeepSpeed cannot partition, shrink or keep where ds-config.json says.

    Raises `ModelRefusedError` for the model and the machine, `SettingsError` for ds-config.json, each saying what would work.
    """
    guard_causal(shape)
    document = read_deepspeed_config(settings.deepspeed_config)
    offload = _guard_document(document, settings)
    families.guard_plain(shape, "strategy ZeroInference")
    families.guard_family("ZeroInference", shape)
    if (quantization := _quantization(document)) is not None:
        _guard_quantization(shape, settings, quantization)
    if offload["device"] == "nvme":
        _guard_disk(shape, settings, Path(str(offload.get("nvme_path"))))


def load(settings: Settings, group: Group) -> Any:
    """Return the model with this rank's part of every parameter; its layers fetch the rest while they are computed.

    Only the first rank reads the safetensors and hands every rank its parts, one parameter at a time.
    Raises `ModelRefusedError` when DeepSpeed has no room for a parameter, which it says before weights are read.
    """
    import torch.distributed as dist

    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it; one process has no launcher that sets it
    with joining.steered(group):
        document = read_deepspeed_config(settings.deepspeed_config)
        if not dist.is_initialized():
            dist.init_process_group(group.backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        joining.join(group)
        model = _partitioned(settings, document)
        group.barrier()
    limit_patience([dist.group.WORLD], settings.collective_timeout_seconds)  # where DeepSpeed's collectives are
    return model


def share(shape: ModelShape, settings: Settings) -> Share:
    """Return what one rank may hold: an even part of every parameter."""
    return Share(part=1 / settings.tensor, embeddings_are_whole=False, head_is_apart=False)


def _guard_document(document: Mapping[str, Any], settings: Settings) -> Mapping[str, Any]:
    """Return where parameters are kept, once the document is one of stage 3 in the asked data type."""
    zero = document.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage != 3:
        raise SettingsError(
            f"ds-config.json: zero_optimization.stage is {stage}, and strategy ZeroInference needs 3. "
            "Render it from the object with `lmd render`."
        )
    told = [name for name, flag in _FLAGS.items() if document.get(flag, {}).get("enabled")] or ["float32"]
    if told != [settings.dtype]:
        raise SettingsError(
            f"ds-config.json: bf16 and fp16 say {' and '.join(told)}, but model-config.yaml loads {settings.dtype}. "
            "Render both from one object with `lmd render`."
        )
    joining.guard_dtype(settings)
    offload: Mapping[str, Any] = zero.get("offload_param") or {}  # type: ignore[union-attr]
    if offload.get("device") not in _PLACES:
        raise SettingsError(
            f"ds-config.json: zero_optimization.offload_param.device is {offload.get('device')}, must be cpu or nvme. "
            "Render it from the object with `lmd render`."
        )
    return offload


def _quantization(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return how weights are made smaller while they are loaded, if they are."""
    asked: Mapping[str, Any] | None = document.get("weight_quantization", {}).get("quantized_initialization")
    return asked


def _guard_quantization(shape: ModelShape, settings: Settings, quantization: Mapping[str, Any]) -> None:
    bits, group = quantization["num_bits"], quantization["group_size"]
    instead = "Use spec.engine.zeroInference.weights: Full."
    if settings.dtype == "float16":
        raise ModelRefusedError(
            f"weights of {bits} bits cannot be computed with in float16: DeepSpeed would compile a kernel for it at run time. "
            f"Use bfloat16. Or: {instead}"
        )
    if shape.experts:
        raise ModelRefusedError(
            f"{shape.model_type} has {shape.experts} experts, which DeepSpeed would leave as they are: it quantizes linear layers and "
            f"embeddings, and transformers 5 has the experts of a layer in one tensor. {instead}"
        )
    if shape.model_type in _NOT_LINEAR:
        raise ModelRefusedError(
            f"{shape.model_type} cannot be quantized: {_NOT_LINEAR[shape.model_type]}, and DeepSpeed quantizes Linear and Embedding. "
            f"{instead}"
        )
    widths = {
        "hidden size": shape.hidden_size,
        "intermediate size": shape.intermediate_size,
        "heads x head size": shape.heads * shape.head_dim,
    }
    for name, width in widths.items():
        if width % group:
            raise ModelRefusedError(
                f"{shape.model_type} cannot be quantized: DeepSpeed does it in groups of {group} columns, and its {name} is {width}. "
                f"{instead}"
            )


def _guard_disk(shape: ModelShape, settings: Settings, path: Path) -> None:
    needed = shape.parameters * _BYTES[settings.dtype]
    instead = "Use spec.engine.zeroInference.parameters: Host, or strategy Accelerate, which reads from the safetensors themselves."
    if not os.access(path, os.W_OK | os.X_OK):
        raise SettingsError(f"ds-config.json: {path} (zero_optimization.offload_param.nvme_path) is no directory to write to. Mount one.")
    free = shutil.disk_usage(path).free
    if needed > free:
        raise ModelRefusedError(f"the parameters need {needed / _GIB:.3g} GiB at {path}, and {free / _GIB:.3g} GiB are free. {instead}")
    os.environ.setdefault("DS_ACCELERATOR", settings.device)  # read when DeepSpeed is imported
    if not has_disk_operation():
        raise ModelRefusedError(
            "parameters on disk need DeepSpeed's operations async_io and pin_memory, which this image can neither load nor build. "
            f"{instead}"
        )


def has_disk_operation() -> bool:
    """Whether DeepSpeed can read and write parameters on disk: its operations were built with it, or can be built now."""
    with contextlib.redirect_stdout(sys.stderr):
        from deepspeed.git_version_info import installed_ops
        from deepspeed.ops.op_builder import AsyncIOBuilder, PinMemoryBuilder

        missing = [builder for builder in (PinMemoryBuilder, AsyncIOBuilder) if not installed_ops.get(builder.NAME)]
        return not missing or bool(shutil.which("ninja") and all(builder().is_compatible(verbose=False) for builder in missing))


def _partitioned(settings: Settings, document: dict[str, Any]) -> Any:
    import deepspeed

    with _reading_in_parts(document):
        try:
            model = read_model(settings)
        except AssertionError as error:
            reason = (str(error).splitlines() or [""])[0].rstrip(".")
            raise ModelRefusedError(
                f"DeepSpeed cannot partition {settings.model_path}: {reason}. Raise spec.engine.zeroInference.bufferParameters, "
                "or use spec.engine.zeroInference.parameters: Host."
            ) from error
    engine = deepspeed.initialize(model=model, config=document)[0]
    module = engine.module.eval()
    object.__setattr__(module, "deepspeed_engine", engine)  # it ends when nobody has it; as a child it would have itself
    return module


@contextlib.contextmanager
def _reading_in_parts(document: dict[str, Any]) -> Iterator[None]:
    """Let transformers partition every parameter as soon as it is made, and read safetensors on the first rank alone."""
    integration = importlib.import_module("transformers.integrations.deepspeed")
    kept = integration.HfDeepSpeedConfig(document)
    try:
        yield
    finally:
        integration.unset_hf_deepspeed_config()
        del kept  # transformers has only a weak reference, so it had to live until here
