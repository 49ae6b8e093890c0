"""Where a model is on this machine, and making the small ones that packages ship."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.errors import LocalRunError
from lmd_operator.planning.plan import Plan
from lmd_operator.rendering.layout import IMAGE_MODELS

SHIPPED = ("smollm2-135m-instruct",)
"""Models whose weights come with a Python package and are made ready once."""
RANK_BYTES = 300 * 2**20
"""Least memory a rank needs besides weights: Python, torch and its libraries; measured 0.4 to 1.1 GiB resident."""


def cache_directory() -> Path:
    """Return where prepared models are kept: LMD_CACHE_DIR, or `lmd` in the user's cache folder."""
    given = os.environ.get("LMD_CACHE_DIR")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lmd"


def models_directory(deployment: LargeModelDeployment, models: Path, claims: Mapping[str, Path], report: Callable[[str], None]) -> Path:
    """Return the directory that stands for `/models` of a pod, with the model in it.

    A path source below `/models` is looked up in `models`, and a shipped model is prepared there; a claim is the directory
    given for it; what is fetched is put into `models`, and found there the next time. Raises `LocalRunError` when the model
    is nowhere, naming where it was looked for.
    """
    source = deployment.spec.model.source
    if source.persistent_volume_claim is not None:
        return _claim(source.persistent_volume_claim.claim_name, source.persistent_volume_claim.path, claims)
    if source.image is not None:
        raise LocalRunError(
            "the model is in an OCI image, which only a cluster mounts: copy it to a directory and use source.path to serve it here"
        )
    if source.path is None:
        models.mkdir(parents=True, exist_ok=True)
        return models  # the fetch puts it there
    path = source.path.path
    if not path.startswith(f"{IMAGE_MODELS}/") or Path(path).is_dir():
        _require_model(Path(path))
        return Path(IMAGE_MODELS)
    name = path.removeprefix(f"{IMAGE_MODELS}/").strip("/")
    if name in SHIPPED and not (models / name / "config.json").exists():
        _prepare(name, models, report)
    _require_model(models / name)
    return models


def require_memory(directory: Path, plan: Plan, *, is_on_disk: bool = False) -> None:
    """Raise `LocalRunError` when the model cannot fit whatever else happens: weights once, plus the ranks themselves.

    Weights that may stay on disk are not counted; `is_on_disk` says that they do.
    """
    if plan.strategy == "Accelerate" or is_on_disk:
        return
    weights = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    needed = weights + plan.ranks * RANK_BYTES
    available = psutil.virtual_memory().available
    if plan.gpus_per_replica == 0 and needed > available:
        raise LocalRunError(
            f"too little memory: {_gib(weights)} of weights and {plan.ranks} ranks need at least {_gib(needed)}, and {_gib(available)} "
            "is available. Close other programs, or serve a smaller model"
        )


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _claim(name: str, path: str, claims: Mapping[str, Path]) -> Path:
    if name not in claims:
        raise LocalRunError(
            f"the model is on the claim {name}, which exists only in a cluster: name a local directory for it with --claim {name}=DIRECTORY"
        )
    _require_model(claims[name] / path)
    return claims[name]


def _require_model(directory: Path) -> None:
    if not directory.is_dir():
        raise LocalRunError(f"no model at {directory}: the directory does not exist. Put a model there, or change spec.model.source")
    if not (directory / "config.json").is_file():
        raise LocalRunError(
            f"no model at {directory}: it has no config.json. Save the model there with save_pretrained, or change spec.model.source"
        )


def _prepare(name: str, models: Path, report: Callable[[str], None]) -> None:
    """Run the worker's converter, which leaves either a whole model or nothing; its lines are the progress."""
    models.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lmd_worker.weights.convert", name, "--into", str(models / name)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            last = line.strip() or last
            report(f"preparing {name}: {last}")
    if process.returncode:
        raise LocalRunError(f"preparing {name} failed: {last}. Run `{' '.join(command)}` to see all of it")
