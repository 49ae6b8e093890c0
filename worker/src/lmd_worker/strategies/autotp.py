"""Strategy DeepSpeed: automatic tensor parallelism by `deepspeed.init_inference`, driven by the rendered ds-config.json.

That file is the whole configuration; nothing is added to it here. What is set besides are facts of the process (`joining`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmd_worker.errors import SettingsError
from lmd_worker.settings import Settings, read_deepspeed_config
from lmd_worker.shape import ModelShape
from lmd_worker.strategies import degrees, families, joining
from lmd_worker.strategies.reading import read_model
from lmd_worker.strategies.share import Share
from lmd_worker.strategies.single import guard_causal

if TYPE_CHECKING:
    from lmd_worker.ranks import Group

_DTYPE_NAMES = {
    "bfloat16": ("bfloat16", "bf16", "torch.bfloat16"),
    "float16": ("float16", "fp16", "half", "torch.float16"),
    "float32": ("float32", "fp32", "float", "torch.float32"),
}
"""DeepSpeed's spellings of each type (deepspeed 0.19.8, inference/config.py)."""

_DEFAULT_GRAIN = 64  # deepspeed 0.19.8, inference/config.py


def guard(shape: ModelShape, settings: Settings) -> None:
    """Refuse, before loading anything, what DeepSpeed cannot cut right.

    Raises `ModelRefusedError` for the model and `SettingsError` for ds-config.json, each saying what would work.
    """
    guard_causal(shape)
    _guard_document(read_deepspeed_config(settings.deepspeed_config), settings)
    families.guard_plain(shape, "AutoTP")
    families.guard_family("DeepSpeed", shape)
    degrees.guard_degree("DeepSpeed", shape, settings.tensor)


def load(settings: Settings, group: Group) -> Any:
    """Return this rank's share of the model, on its device: transformers' own class with its linear layers cut.

    Every rank maps the whole safetensors and keeps its part. Raises `SettingsError` when DeepSpeed refuses ds-config.json.
    """
    with joining.steered(group):
        model = read_model(settings)
        group.barrier()  # disks differ; what follows has collectives
        return _cut(model, read_deepspeed_config(settings.deepspeed_config), group)


def share(shape: ModelShape, settings: Settings) -> Share:
    """Return what the fullest rank may hold of what ds-config.json asks to cut."""
    grain = read_deepspeed_config(settings.deepspeed_config).get("tensor_parallel", {}).get("tp_grain_size", _DEFAULT_GRAIN)
    return degrees.autotp_share(shape, settings.tensor, grain)


def _cut(model: Any, document: dict[str, Any], group: Group) -> Any:
    joining.join(group)
    import deepspeed
    from pydantic import ValidationError

    if group.size > 1:
        # Without this DeepSpeed makes a group of its own whose collectives wait half an hour for a peer that has stopped.
        deepspeed.InferenceEngine.inference_mp_group = group.model
    try:
        engine = deepspeed.init_inference(model, config=document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise SettingsError(f"ds-config.json: {key}: {first['msg']}. Render it with the operator of the same version.") from error
    return engine.module


def _guard_document(document: dict[str, Any], settings: Settings) -> None:
    asked = document.get("dtype")
    if asked not in _DTYPE_NAMES[settings.dtype]:
        raise SettingsError(
            f"ds-config.json: dtype is {asked}, but model-config.yaml loads {settings.dtype}. "
            "Render both from one object with `lmd render`."
        )
    if document.get("replace_with_kernel_inject") or document.get("kernel_inject"):
        raise SettingsError(
            "ds-config.json: replace_with_kernel_inject is true, but DeepSpeed's injected kernels do not work with transformers 5. "
            "Set it to false."
        )
    joining.guard_dtype(settings)
