"""Strategy Accelerate: one process for a model that is larger than its device; what does not fit waits in host memory, then on disk.

Layers are computed on the one device, in order; the weights of those that wait come to it at every step, so it is slow. Layers on disk are
read from the safetensors themselves. How much of each memory the weights may take is settled here, so that the cache has room.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

from lmd_worker.errors import ModelRefusedError
from lmd_worker.settings import Settings
from lmd_worker.shape import ModelShape
from lmd_worker.strategies.families import instead
from lmd_worker.strategies.reading import read_model, torch_dtype
from lmd_worker.strategies.share import Share
from lmd_worker.strategies.single import guard_causal

if TYPE_CHECKING:
    from lmd_worker.ranks import Group

_USABLE = 0.9
"""The part of free memory that is planned with; the rest is for what the libraries take beside weights and cache."""
_GIB = 2**30


def guard(shape: ModelShape, settings: Settings) -> None:
    """Refuse what is no causal language model, before loading anything; raises `ModelRefusedError`."""
    if settings.tensor != 1:
        raise ModelRefusedError(
            f"strategy Accelerate runs one process, not degree {settings.tensor}. Use a strategy that cuts, or degree 1."
        )
    guard_causal(shape)


def load(settings: Settings, group: Group) -> Any:
    """Return the model with its layers dealt out over the device, host memory and disk.

    Raises `ModelRefusedError` for a mixture of experts that needs the disk: its experts are stored one by one and used as one tensor, so
    they would be written there a second time.
    """
    shape = ModelShape.read(settings.model_path)
    room = budget(shape, settings, group)
    needed = shape.parameters * torch_dtype(settings).itemsize
    if shape.experts and needed > sum(room.values()):
        raise ModelRefusedError(
            f"{shape.model_type} has {shape.experts} experts and needs {needed / _GIB:.2g} GiB, but its weights may take only "
            f"{sum(room.values()) / _GIB:.2g} GiB of memory, and experts cannot be read from disk as they are stored. "
            f"Raise hostMemory or the pod's memory. {instead(shape)}"
        )
    return read_model(settings, device_map="auto", max_memory=room, offload_folder=tempfile.mkdtemp(prefix="offload-"))


def share(shape: ModelShape, settings: Settings) -> Share:
    """Return that parameters may be elsewhere."""
    return Share(is_offloaded=True)


def budget(shape: ModelShape, settings: Settings, group: Group) -> dict[int | str, int]:
    """Return the bytes that weights may take on the device and in host memory, as transformers' `max_memory`."""
    import torch

    from lmd_worker.engine.pages import CacheShape, free_bytes

    cache = CacheShape(
        layers=shape.layers,
        heads=shape.heads,
        key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dim,
        dtype=torch_dtype(settings),
        context_tokens=shape.context_tokens(settings.context_tokens),
        concurrency=settings.concurrency,
    )
    on_device = max(0, int(free_bytes(group.device) * _USABLE) - cache.bytes - cache.working_bytes)
    if group.device.type == "cpu":
        return {"cpu": _at_most(on_device, settings.host_memory_bytes)}
    host = int(free_bytes(torch.device("cpu")) * _USABLE)
    return {group.device.index: on_device, "cpu": _at_most(host, settings.host_memory_bytes)}


def _at_most(found: int, asked: int | None) -> int:
    return found if asked is None else min(found, asked)
