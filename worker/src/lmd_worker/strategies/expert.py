"""Strategy Expert: a mixture of experts with each expert whole on one rank, by transformers' own plan.

The same ranks cut attention and all that is dense, as under strategy Tensor. It is the only one that spreads the experts of families whose
tensor-parallel plan leaves them whole.
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
    """Refuse, before loading anything, what has no experts or cannot be spread right; raises `ModelRefusedError`."""
    native.guard("Expert", shape, settings)


def load(settings: Settings, group: Group) -> Any:
    """Return this rank's share of the model, on its device."""
    return native.load(settings, group, tensor=settings.tensor, expert=settings.tensor)


def share(shape: ModelShape, settings: Settings) -> Share:
    """Return what the fullest rank may hold."""
    return degrees.native_share(shape, settings.tensor)
