"""The GPUs of this machine. TorchServe turns `gpu` into `cpu` without a word where it finds none; we do not."""

from __future__ import annotations

import subprocess

from lmd_operator.errors import LocalRunError
from lmd_operator.planning.plan import Plan


def require_devices(plan: Plan) -> None:
    """Raise `LocalRunError` when the plan needs more GPUs than there are."""
    if plan.gpus_per_replica == 0:
        return
    found = count_gpus()
    if found < plan.gpus_per_replica:
        raise LocalRunError(
            f"the object asks for {plan.gpus_per_replica} GPUs and this machine has {found}: set spec.accelerator.type to CPU to try it "
            "without, or lower spec.parallelism.tensor"
        )


def count_gpus() -> int:
    """Return how many GPUs nvidia-smi lists, as TorchServe does; 0 where there is no nvidia-smi."""
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(listed.stdout.split())
