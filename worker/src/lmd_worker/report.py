"""What every rank says about itself once it is loaded; gathered on rank 0, kept where the status can read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lmd_worker import rundir

CPUS = "cpu of "
"""Begins the device's id of ranks on CPUs, which may share a host; all other devices are for one rank alone."""


@dataclass(frozen=True, slots=True)
class RankReport:
    """What one rank runs, as it is, not as it was asked.

    `parameter_bytes` are the bytes of parameters this rank holds, `model_bytes` those of the whole model in the same dtype, and
    `allowed_bytes` the most that a rank may hold of it at these degrees. `degree` is the tensor-parallel one and `pipeline` the number
    of stages. `device` is torch's name for it, `device_id` the GPU's UUID or the host's CPU. `scheduler` is the one that runs, and
    `scheduler_reason` says why where another was asked for. `load_seconds` is what reading, cutting and testing took, rounded up.
    """

    rank: int
    world_size: int
    strategy: str
    degree: int
    device: str
    device_id: str
    dtype: str
    parameter_bytes: int
    model_bytes: int
    heads: int
    key_value_heads: int
    pid: int
    versions: dict[str, str]
    pipeline: int = 1
    scheduler: str = ""
    scheduler_reason: str = ""
    allowed_bytes: int = 0
    load_seconds: int = 0


def write(reports: Sequence[RankReport], run_directory: Path) -> None:
    """Replace the report at once, when all ranks have loaded and passed their self-test; readers see the old one or the new one."""
    run_directory.mkdir(parents=True, exist_ok=True)
    temporary = run_directory / f"{rundir.RANK_REPORT}.new"
    temporary.write_text(to_json(reports))
    temporary.replace(run_directory / rundir.RANK_REPORT)


def to_json(reports: Sequence[RankReport]) -> str:
    """The same JSON for the file and for the report route."""
    return json.dumps({"ranks": [asdict(report) for report in reports]}, sort_keys=True)
