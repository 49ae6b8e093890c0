"""Strategy Tensor: transformers' own tensor parallelism, by the plan that each of its model classes brings.

It serves families that AutoTP gets wrong, cuts embeddings and experts too, and needs the least memory while loading. Heads are cut
evenly or not at all, so fewer degrees are legal than with DeepSpeed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmd_worker.settings import Settings
from lmd_worker.shape import ModelShape
from lmd_worker.strategies import degrees, native
from lmd_worker.strategies.share import Share

if TYPE_CHECKING:
    from lmd_worker.ranks import Group


def guard(shape: ModelShape, settings: Settings) -> None:
    """Refuse, before loading anything, what transformers cannot cut right; raises `ModelRefusedError` saying what would work."""
    native.guard("Tensor", shape, settings)


def load(settings: Settings, group: Group) -> Any:
    """Return this rank's share of the model, on its device."""
    return native.load(settings, group, tensor=settings.tensor)


def share(shape: ModelShape, settings: Settings) -> Share:
    """Return what the fullest rank may hold."""
    return degrees.native_share(shape, settings.tensor)
