"""The shape of a model as this machine can find it out: by `lmd-worker inspect`, or from a file that holds it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.errors import LocalRunError
from lmd_operator.local.models import models_directory
from lmd_operator.local.worker import ask
from lmd_operator.planning.shapes import ModelShape
from lmd_operator.planning.tensors import shape_of, tensors_of
from lmd_operator.rendering.layout import IMAGE_MODELS


def shape_of_model(deployment: LargeModelDeployment, models: Path, claims: Mapping[str, Path], report: Callable[[str], None]) -> ModelShape:
    """Return the shape of an object's model; no weights are read. Raises `LocalRunError` where its files cannot be reached from here."""
    return _inspected(_source(deployment, models, claims, report))


def shape_of_file(path: Path) -> ModelShape:
    """Return the shape that a file or directory holds: a config.json, what `lmd inspect --outline` printed, or a model directory."""
    if path.is_dir():
        return _inspected([str(path)])
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LocalRunError(f"{path}: {error.strerror}: name a config.json or a model directory") from error
    except ValueError as error:
        raise LocalRunError(f"{path} is no JSON: name a config.json or a model directory") from error
    if not isinstance(document, dict):
        raise LocalRunError(f"{path} is not a JSON object: name a config.json or a model directory")
    return _told(document)


def _inspected(source: list[str]) -> ModelShape:
    return _told(ask("inspect", *source, "--outline"))


def _told(document: Mapping[str, object]) -> ModelShape:
    config, tensors = document.get("config"), document.get("tensors")
    if isinstance(config, dict) and isinstance(tensors, list):
        return shape_of(config, tensors_of(tensors))
    return shape_of(document)


def _source(deployment: LargeModelDeployment, models: Path, claims: Mapping[str, Path], report: Callable[[str], None]) -> list[str]:
    """Return the arguments by which `lmd-worker inspect` finds the model."""
    source = deployment.spec.model.source
    if (hub := source.hugging_face) is not None:
        return [f"hf:{hub.repository}@{hub.revision}", *(["--endpoint", hub.endpoint] if hub.endpoint else [])]
    if (store := source.s3) is not None:
        endpoint = ["--endpoint", store.endpoint] if store.endpoint else []
        return [store.uri, *endpoint, *(["--region", store.region] if store.region else [])]
    root = models_directory(deployment, models, claims, report)
    if (claim := source.persistent_volume_claim) is not None:
        return [str(root / claim.path)]
    path = source.path.path if source.path is not None else ""
    below = path.removeprefix(f"{IMAGE_MODELS}/")
    return [path if below == path or root == Path(IMAGE_MODELS) else str(root / below)]
