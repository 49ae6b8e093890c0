"""What ranks report of themselves, compared with what the operator rendered; the last gate before they may say ready. Pure.

The group and the self-test look at what they see first: a rank that does not come, weights that are not cut. All of them raise the
same reasons, which the operator reads from the container's last words and shows as the condition ParallelismVerified.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmd_worker.errors import RankError
from lmd_worker.report import CPUS, RankReport


def check_devices(device_ids: Sequence[str]) -> None:
    """Raise `RankError` when two ranks have one device; `device_ids` are by rank."""
    owners: dict[str, int] = {}
    for rank, device in enumerate(device_ids):
        owner = owners.setdefault(device, rank)
        if owner != rank and not device.startswith(CPUS):
            raise RankError(
                f"Rank {rank}: it runs on {device}, as rank {owner} does. "
                "Request one GPU per rank, and leave CUDA_VISIBLE_DEVICES and GPU sharing out of it.",
                reason="SharedDevice",
            )


def check(reports: Sequence[RankReport], *, strategy: str, ranks: int, degree: int, stages: int = 1) -> None:
    """Raise `RankError` unless the reports are those of every planned rank, each as planned, on its own device, with its share."""
    by_rank = {report.rank: report for report in reports}
    for rank, report in sorted(by_rank.items()):
        runs, planned = (report.world_size, report.strategy, report.degree, report.pipeline), (ranks, strategy, degree, stages)
        if runs != planned:
            raise RankError(
                f"Rank {rank}: it runs {_words(*runs)}, but {_words(*planned)} is planned. "
                "Render model-config.yaml and ds-config.json from one object, and use the worker image of the operator's version.",
                reason="DegreeMismatch",
            )
    missing = [str(rank) for rank in range(ranks) if rank not in by_rank]
    if missing:
        raise RankError(
            f"Rank {missing[0]}: it does not report; {len(by_rank)} of {ranks} planned ranks do. What it wrote before is the cause.",
            reason="RankMissing",
        )
    check_devices([report.device_id for _, report in sorted(by_rank.items())])
    for rank, report in sorted(by_rank.items()):
        if ranks > 1 and report.parameter_bytes > report.allowed_bytes:
            raise RankError(
                f"Rank {rank}: it holds {report.parameter_bytes} bytes of parameters of a model of {report.model_bytes}, more than "
                f"its share at degree {degree} ({report.allowed_bytes} bytes). Use strategy None, or another model.",
                reason="NotSharded",
            )


def _words(ranks: int, strategy: str, degree: int, stages: int) -> str:
    return f"{strategy} at degree {degree}{f' in {stages} stages' if stages > 1 else ''} on {ranks} ranks"
