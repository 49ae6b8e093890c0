"""transformers' own way to cut a model over ranks (`DistributedConfig`), which several strategies use.

Each rank reads only its slices of the mapped safetensors, so loading needs no more memory than the share. The library makes its process
groups itself; they get our timeout once everybody has loaded, so that a rank that stops is noticed.
"""

from __future__ import annotations

from typing import Any

from lmd_worker.errors import RankError
from lmd_worker.ranks import Group, limit_patience
from lmd_worker.settings import Settings
from lmd_worker.shape import ModelShape
from lmd_worker.strategies import degrees, families
from lmd_worker.strategies.reading import read_model
from lmd_worker.strategies.single import guard_causal


def guard(strategy: str, shape: ModelShape, settings: Settings) -> None:
    """Refuse, before loading anything, what this strategy cannot cut right; raises `ModelRefusedError` saying what would work."""
    guard_causal(shape)
    families.guard_plain(shape, f"strategy {strategy}")
    families.guard_family(strategy, shape)
    degrees.guard_degree(strategy, shape, settings.tensor)


def load(settings: Settings, group: Group, *, tensor: int = 1, expert: int = 1, pipeline: int = 1) -> Any:
    """Return this rank's share of the model, on its device, cut to these degrees.

    Raises `RankError` when transformers would put the share elsewhere than on the rank's device.
    """
    if group.size == 1:
        return read_model(settings).to(group.device)
    import torch
    from transformers.distributed.configuration_utils import DistributedConfig

    if torch.accelerator.is_available() and group.device.type == "cpu":
        raise RankError(
            f"transformers would cut the model over {torch.accelerator.current_accelerator()}, but this is a rank on the CPU. "
            "Hide the devices from it (CUDA_VISIBLE_DEVICES=), or use strategy DeepSpeed."
        )
    model = read_model(settings, distributed_config=DistributedConfig(tp_size=tensor, ep_size=expert, pp_size=pipeline))
    group.barrier()
    meshes = (model._mesh_manager._dense_mesh, model._mesh_manager._expert_mesh)
    limit_patience([mesh.get_group(name) for mesh in meshes for name in mesh.mesh_dim_names], settings.collective_timeout_seconds)
    return model
