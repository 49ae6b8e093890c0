"""One module a strategy, found by the name the operator renders.

Each has `guard(shape, settings)`, `load(settings, group)` and `share(shape, settings)`.
"""

from __future__ import annotations

from types import ModuleType

from lmd_worker.settings import Settings
from lmd_worker.strategies import autotp, expert, offload, pipeline, single, tensor

_MODULES: dict[str, ModuleType] = {
    "Accelerate": offload,
    "DeepSpeed": autotp,
    "Expert": expert,
    "None": single,
    "Pipeline": pipeline,
    "PipelineTensor": pipeline,
    "Tensor": tensor,
}
_STATIC = dict.fromkeys(("Pipeline", "PipelineTensor"), "its layers are not all on one device")


def chosen(settings: Settings) -> ModuleType:
    """Return the module of the asked strategy."""
    return _MODULES[settings.strategy]


def static_reason(settings: Settings) -> str:
    """Return why no model is decoded continuously under the asked strategy, or nothing."""
    return _STATIC.get(settings.strategy, "")
