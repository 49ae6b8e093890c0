"""The process group: who is in it, on which device, and what the ranks tell each other outside the model.

Three groups on purpose. The default one has a generous timeout, because ranks finish loading at different times. `model` carries
the model's own collectives and `control` (gloo, also on CUDA) the engine's messages; both fail after
`collective_timeout_seconds`, so that a stopped peer is noticed. torch is imported inside, so that importing this is cheap.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lmd_worker import cores, verification
from lmd_worker.errors import RankError
from lmd_worker.report import CPUS, RankReport
from lmd_worker.settings import Settings

if TYPE_CHECKING:
    import torch

LOADING_TIMEOUT_SECONDS = 1800
"""How long ranks wait for each other while weights come from disk."""
JOIN_TIMEOUT_SECONDS = 600
"""How long ranks wait for each other to appear: they are started together, and import libraries before."""


@dataclass(frozen=True, slots=True)
class Group:
    """One rank's view of the group. A single process has no process groups, and every call below is then local."""

    rank: int
    size: int
    device: torch.device
    model: Any = None
    control: Any = None

    @property
    def backend(self) -> str:
        """What carries collectives of tensors on the device, by torch's name."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Overwrite a CPU tensor on every rank with rank 0's; shapes and types must agree."""
        if self.control is not None:
            import torch.distributed as dist

            dist.broadcast(tensor, src=0, group=self.control)

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return every rank's CPU tensor, by rank, on every rank; shapes and types must agree."""
        if self.control is None:
            return [tensor]
        import torch
        import torch.distributed as dist

        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(gathered, tensor, group=self.control)
        return gathered

    def collect(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return every rank's CPU tensor, by rank, on rank 0, and nothing elsewhere; shapes and types must agree."""
        if self.control is None:
            return [tensor]
        import torch
        import torch.distributed as dist

        collected = [torch.empty_like(tensor) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(tensor, collected, dst=0, group=self.control)
        return collected or []

    def gather_text(self, text: str) -> list[str]:
        """Return every rank's text, by rank, on every rank. Bytes travel, never pickles."""
        if self.control is None:
            return [text]
        import torch

        data = text.encode()
        lengths = self.gather(torch.tensor([len(data)]))
        padded = torch.zeros(max(int(length) for length in lengths), dtype=torch.uint8)
        padded[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
        parts = self.gather(padded)
        return [bytes(part[: int(length)].tolist()).decode() for part, length in zip(parts, lengths, strict=True)]

    def barrier(self) -> None:
        """Return when all ranks have come here, however long the slowest disk takes. Raises when a rank is lost."""
        if self.control is not None:
            import torch.distributed as dist

            try:
                dist.monitored_barrier(group=self.control, timeout=timedelta(seconds=LOADING_TIMEOUT_SECONDS))
            except RuntimeError as error:
                said = (str(error).splitlines() or [""])[0].rstrip(".")
                raise RankError(
                    f"Rank {self.rank}: not every rank has loaded its share: {said}. What the missing rank wrote before is the cause.",
                    reason="RankMissing",
                ) from error


def join(settings: Settings) -> Group:
    """Join the group that the launcher started; return when all ranks are in it.

    Raises `RankError` when the launcher started another number of ranks than the degrees make, one does not come, or has no device.
    """
    rank, size, local_rank = (_number(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    if size != settings.ranks:
        stages = f" and the pipeline's {settings.pipeline}" if settings.pipeline > 1 else ""
        raise RankError(
            f"Rank {rank}: the launcher started {size} ranks, but the tensor-parallel degree is {settings.tensor}{stages}. "
            "Render model-config.yaml and ds-config.json from one object.",
            reason="DegreeMismatch",
        )
    device = _device(settings, local_rank)
    if size == 1:
        if device.type == "cpu":
            cores.let_brief_threads_in()
        return Group(rank=0, size=1, device=device)

    import torch.distributed as dist

    backend = Group(rank, size, device).backend
    store = _assembled(rank, size)
    if device.type == "cpu":
        cores.wake_without_preempting()
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=LOADING_TIMEOUT_SECONDS))
    patience = timedelta(seconds=settings.collective_timeout_seconds)
    everyone = list(range(size))
    group = Group(
        rank=rank,
        size=size,
        device=device,
        model=dist.new_group(everyone, timeout=patience, backend=backend),
        control=dist.new_group(everyone, timeout=patience, backend="gloo"),
    )
    verification.check_devices(group.gather_text(device_id(device)))
    return group


def limit_patience(groups: Iterable[Any], seconds: int) -> None:
    """Make collectives of process groups that a library has made fail after so long, once everybody has loaded."""
    from torch.distributed.distributed_c10d import _set_pg_timeout

    for group in groups:
        _set_pg_timeout(timedelta(seconds=seconds), group)


def gather_reports(group: Group, own: RankReport) -> Sequence[RankReport]:
    """Return every rank's report, by rank, on every rank."""
    return [RankReport(**json.loads(text)) for text in group.gather_text(json.dumps(asdict(own)))]


def device_id(device: torch.device) -> str:
    """Return what tells this device from every other one: a GPU's UUID, or the host's name for its CPUs."""
    if device.type == "cuda":
        import torch

        return str(torch.cuda.get_device_properties(device).uuid)
    return f"{CPUS}{platform.node()}"


def _assembled(rank: int, size: int) -> Any:
    """Return the store that the ranks share, once all of them have said there that they have come.

    Without this a rank that never comes would be waited for as long as one that loads, and nobody would name it.
    """
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    patience = timedelta(seconds=JOIN_TIMEOUT_SECONDS)
    present = [f"lmd/present/{other}" for other in range(size)]
    store = None
    missing: list[str] = []
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=patience))
        store.set(present[rank], b"")
        store.wait(present, patience)
    except dist.DistError as error:
        with contextlib.suppress(dist.DistError):  # the store may be gone with the rank that holds it
            missing = [str(other) for other, key in enumerate(present) if store is not None and not store.check([key])]
        who = f"rank {', '.join(missing)} of {size} ranks" if 0 < len(missing) < size else f"a rank of {size}"
        raise RankError(
            f"Rank {rank}: {who} did not come within {JOIN_TIMEOUT_SECONDS} s. "
            "What the missing rank wrote before is the cause, or its process hangs.",
            reason="RankMissing",
        ) from error
    store.set_timeout(timedelta(seconds=LOADING_TIMEOUT_SECONDS))
    return store


def _device(settings: Settings, local_rank: int) -> torch.device:
    """Return the rank's own device, by its local rank: the frontend's gpu_id is the same for all ranks (torchserve 0.12.0)."""
    import torch

    if settings.device == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if local_rank >= found:
        raise RankError(
            f"the rank with local rank {local_rank} has no GPU: {found} are visible. Request one GPU per rank, "
            "and leave CUDA_VISIBLE_DEVICES unset."
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise RankError(f"{name} is {text!r} in the environment, not a number. Let torchrun set it.")
    return int(text)
