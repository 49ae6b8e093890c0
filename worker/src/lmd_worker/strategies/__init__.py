"""One module a strategy, found by the name the operator renders.

Each has `guard(shape, settings)`, `load(settings, group)` and `share(shape, settings)`.
"""

from __future__ import annotations

from types import ModuleType

from lmd_worker.settings import Settings
from lmd_worker.strategies import autotp, expert, offload, single, tensor

_MODULES: dict[str, ModuleType] = {"Accelerate": offload, "DeepSpeed": autotp, "Expert": expert, "None": single, "Tensor": tensor}


def chosen(settings: Settings) -> ModuleType:
    """Return the module of the asked strategy."""
    return _MODULES[settings.strategy]
