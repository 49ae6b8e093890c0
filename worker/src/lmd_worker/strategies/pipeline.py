"""Strategies Pipeline and PipelineTensor: the layers dealt out over stages by transformers, under the second each one also cut.

A token passes the stages one after the other, so only one of them computes at a time: this is for links that are too slow for sums in
every layer, and for models with fewer heads than devices are needed. Every rank is given the last stage's scores. What the library gets
wrong is put right in `stages`, which was proven with one version of it.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

from lmd_worker.errors import ModelRefusedError
from lmd_worker.settings import Settings
from lmd_worker.shape import ModelShape
from lmd_worker.strategies import degrees, families, native
from lmd_worker.strategies.share import Share
from lmd_worker.strategies.single import guard_causal

if TYPE_CHECKING:
    from lmd_worker.ranks import Group

PROVEN_WITH = "5.23"
"""The minor version of transformers whose pipeline `stages` repairs."""


def guard(shape: ModelShape, settings: Settings) -> None:
    """Refuse, before loading anything, what cannot be dealt out right; raises `ModelRefusedError` saying what would work."""
    guard_causal(shape)
    _guard_version(shape, settings.strategy, metadata.version("transformers"))
    families.guard_plain(shape, f"strategy {settings.strategy}")
    families.guard_family(settings.strategy, shape)
    degrees.guard_stages(settings.strategy, shape, settings.pipeline)
    degrees.guard_degree(settings.strategy, shape, settings.tensor)


def load(settings: Settings, group: Group) -> Any:
    """Return this rank's share of its stage, on its device."""
    from lmd_worker.strategies import stages

    with stages.rules_of_own_stage():
        model = native.load(settings, group, tensor=settings.tensor, pipeline=settings.pipeline)
    if group.size > 1:
        stages.repair(model, settings.collective_timeout_seconds)
    return model


def share(shape: ModelShape, settings: Settings) -> Share:
    """Return what the fullest rank may hold."""
    return degrees.stage_share(shape, settings.tensor, settings.pipeline)


def _guard_version(shape: ModelShape, strategy: str, found: str) -> None:
    if found.split(".")[:2] != PROVEN_WITH.split("."):
        raise ModelRefusedError(
            f"strategy {strategy} was proven with transformers {PROVEN_WITH} and this worker has {found}, whose pipeline may compute "
            f"other tokens. Use a worker with transformers {PROVEN_WITH}. {families.instead(shape, besides=families.PIPELINES)}"
        )
