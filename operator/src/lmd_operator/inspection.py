"""What is known of an object's model, and whether that is enough. Pure.

It is kept in the status, under the source it is of. So it outlives the operator, is read once for each revision, and a plan is
made from the object alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping

from pydantic import ValidationError

from lmd_operator.api.status import ModelFacts, Status
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.errors import InvalidSpecError, Problem
from lmd_operator.observed import PodState
from lmd_operator.planning.shapes import ModelShape, ShapeError
from lmd_operator.planning.tensors import shape_of, tensors_of
from lmd_operator.rendering.weights import directory, remote_source

FACTS = ("revision", "family", "parameters", "bytes", "heads", "key_value_heads", "layers", "experts", "context_tokens")
"""As `lmd-worker` names them, and `ModelFacts` in Python."""
LARGEST_OUTLINE_BYTES = 2**20
"""Of the text behind an outline; the pod that told it may be anybody's."""


def source_key(owner: LargeModelDeployment) -> str:
    """Return a name of the object's source at its revision: readable, and different for different ones."""
    remote = remote_source(owner)
    if remote is not None:
        return directory(remote)
    told = json.dumps(owner.spec.model.source.model_dump(mode="json", exclude_none=True), sort_keys=True)
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", told)[:40].strip("-")
    return f"{readable}-{hashlib.sha256(told.encode()).hexdigest()[:10]}"


def is_needed(owner: LargeModelDeployment) -> bool:
    """Return whether nothing can be planned before the model is known: only what leaves the degree to the planner pays for a look."""
    return owner.spec.parallelism.tensor == "Auto"


def known(owner: LargeModelDeployment, status: Status) -> ModelFacts | None:
    """Return what the status says of the object's present source, or None when it says nothing, or of another one."""
    model = status.model
    return model if model is not None and model.source == source_key(owner) else None


def outline(model: ModelFacts | None) -> Mapping[str, object] | None:
    """Return what a plan is made from: `config`, and `tensors` as `lmd-worker inspect --outline` prints them; None while not known."""
    if model is None or not model.outline:
        return None
    try:
        inflater = zlib.decompressobj()
        text = inflater.decompress(base64.b64decode(model.outline, validate=True), LARGEST_OUTLINE_BYTES)
        document = json.loads(text)
    except (ValueError, zlib.error, RecursionError):
        return None
    is_one = isinstance(document, dict) and isinstance(document.get("config"), dict) and isinstance(document.get("tensors"), list)
    return document if is_one else None


def shape(model: ModelFacts | None) -> ModelShape | None:
    """Return the model's shape, None while not known. Raises `InvalidSpecError` for what is no model that could be planned."""
    document = outline(model)
    if document is None:
        return None
    config, tensors = document["config"], document["tensors"]
    assert isinstance(config, dict)
    assert isinstance(tensors, list)
    try:
        return shape_of(config, tensors_of(tensors))
    except ShapeError as error:
        raise InvalidSpecError([Problem("spec.model.source", f"cannot be planned: {error}")]) from error


def told(owner: LargeModelDeployment, pods: Iterable[PodState]) -> ModelFacts | None:
    """Return what the first of these pods that is done says of the model in its last words, or None when none does."""
    for pod in pods:
        if pod.fetch is not None and pod.fetch.is_done:
            return _read(source_key(owner), pod.fetch.message)
    return None


def _read(source: str, words: str) -> ModelFacts | None:
    try:
        document = json.loads(words)
        model = document["model"]
        facts = {name: model[name] for name in FACTS if name in model}
        return ModelFacts.model_validate({**facts, "source": source, "outline": document.get("outline", "")}, by_name=True, by_alias=False)
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
        return None
