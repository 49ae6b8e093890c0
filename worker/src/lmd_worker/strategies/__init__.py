"""One module a strategy, found by the name the operator renders.

Each has `guard(shape, settings)`, `load(settings, group)` and `share(shape, settings)`.
"""

from __future__ import annotations

from types import ModuleType

from lmd_worker.settings import Settings
from lmd_worker.shape import ModelShape
from lmd_worker.strategies import autotp, expert, offload, pipeline, single, tensor, zero

_MODULES: dict[str, ModuleType] = {
    "Accelerate": offload,
    "DeepSpeed": autotp,
    "Expert": expert,
    "None": single,
    "Pipeline": pipeline,
    "PipelineTensor": pipeline,
    "Tensor": tensor,
    "ZeroInference": zero,
}
_UNTRIED_IN_STAGES = {
    "gpt_oss": "paged attention has no attention sinks",
    "stablelm": "it passes no keyword arguments to its attention",
}
"""Families whose first stage would raise in the trial of the continuous engine while the next one waits for it."""


def chosen(settings: Settings) -> ModuleType:
    """Return the module of the asked strategy."""
    return _MODULES[settings.strategy]


def static_reason(settings: Settings, shape: ModelShape) -> str:
    """Return why a model is not even tried with the continuous engine under the asked strategy, or nothing."""
    return _UNTRIED_IN_STAGES.get(shape.model_type, "") if settings.pipeline > 1 else ""
