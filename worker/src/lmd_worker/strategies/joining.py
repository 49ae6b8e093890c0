"""What every strategy of DeepSpeed's needs before it: our device, our process group, a silent logger, no shared-memory all-reduce.

That all-reduce is off on CPUs: it needs a compiler at run time, crashes under plain torchrun, ignores process groups and leaves 66 MiB a
rank in /dev/shm.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lmd_worker.errors import ModelRefusedError, RankError
from lmd_worker.settings import Settings

if TYPE_CHECKING:
    from lmd_worker.ranks import Group


def guard_dtype(settings: Settings) -> None:
    """Refuse a data type that DeepSpeed does not have on the device; raises `ModelRefusedError`."""
    if settings.device == "cpu" and settings.dtype == "float16":
        raise ModelRefusedError("DeepSpeed has no float16 on CPUs. Use bfloat16 or float32.")


@contextlib.contextmanager
def steered(group: Group) -> Iterator[None]:
    """Give DeepSpeed the rank's kind of device, before it is imported, and keep what it prints from stdout: that is the launcher's."""
    os.environ["DS_ACCELERATOR"] = group.device.type
    with contextlib.redirect_stdout(sys.stderr):
        yield


def join(group: Group) -> None:
    """Let DeepSpeed use the process group that there is, if there is one. Raises `RankError` when it has chosen another device."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    import deepspeed.ops
    import torch.distributed as dist
    from deepspeed.accelerator import get_accelerator

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)  # again: it sets its own when it is imported
    if get_accelerator().device_name().partition(":")[0] != group.device.type:
        raise RankError(
            f"DeepSpeed chose {get_accelerator().device_name()} on a {group.device.type} rank. Unset DS_ACCELERATOR in the pod."
        )
    if group.device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if dist.is_initialized():
        deepspeed.init_distributed(dist_backend=group.backend, verbose=False)
