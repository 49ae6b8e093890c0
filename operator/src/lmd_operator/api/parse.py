"""The edge: an untrusted mapping becomes a typed object, or a list of problems with path, rule and remedy.

Three layers, each only reached when the one before found nothing: the shape (types, bounds, unknown fields), the rules
over several fields, and what is not built yet. The API server enforces the first two by schema and CEL with the same
models; see `lmd_operator.api.crd`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from lmd_operator.api.availability import unavailable
from lmd_operator.api.base import ApiModel
from lmd_operator.api.fields import python_named
from lmd_operator.api.semantics import contradictions
from lmd_operator.api.v1alpha1 import API_VERSION, KIND, LargeModelDeployment, Spec
from lmd_operator.api.wording import json_path, kind_of, problems_of, unknown_field
from lmd_operator.errors import InvalidSpecError, Problem, UnreadableError

_SERVER_METADATA = frozenset(
    {
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
    }
)
"""Metadata that Kubernetes knows and we do not read."""
_DEEPEST = 64
"""Levels below which no field of ours stands; what is deeper is refused by its shape."""


def parse(document: object, *, strict: bool = True, not_built: Callable[[Spec], list[Problem]] = unavailable) -> LargeModelDeployment:
    """Return the object a document describes.

    `strict` refuses unknown fields, for documents a person wrote; live objects are parsed leniently. `not_built` is what this caller
    refuses because nobody here could run it.
    Raises `UnreadableError` when it is not a LargeModelDeployment, `InvalidSpecError` with every problem of the first
    layer that found any.
    """
    if not isinstance(document, Mapping):
        raise UnreadableError(
            f"the document is {kind_of(document)}, not a mapping: start it with 'apiVersion: {API_VERSION}' and 'kind: {KIND}'"
        )
    for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if document.get(key) != wanted:
            found = "is something else" if key in document else "is missing"
            raise UnreadableError(f"{key} {found}: apiVersion and kind must be '{API_VERSION}' and '{KIND}'; only this kind is read here")
    body = _read_metadata({key: value for key, value in document.items() if key != "status"})
    if strict and (problems := _untextual_keys(body)):  # a live object came as JSON, which has no other keys
        raise InvalidSpecError(problems)
    parsed = _typed(body, strict=strict)
    problems = list(broken_rules(parsed.spec, "spec")) or contradictions(parsed.spec) or not_built(parsed.spec)
    if problems:
        raise InvalidSpecError(problems)
    return parsed


def _typed(body: Mapping[str, Any], *, strict: bool) -> LargeModelDeployment:
    problems = [unknown_field(location) for location in python_named(body)] if strict else []
    try:
        parsed = LargeModelDeployment.model_validate(body, extra="forbid" if strict else "ignore", by_alias=True, by_name=False)
    except ValidationError as error:
        problems += problems_of(error.errors(include_url=False), body)
    if problems:
        raise InvalidSpecError([*dict.fromkeys(problems)])
    return parsed


def broken_rules(model: ApiModel, path: str) -> Iterator[Problem]:
    """Yield every rule that the model or a model inside it breaks."""
    for rule in model.rules:
        if rule.holds is not None and not rule.holds(model):
            yield Problem(".".join(filter(None, [path, rule.field])), rule.message)
    for name, value in model:
        if isinstance(value, ApiModel):
            alias = type(model).model_fields[name].alias or name
            yield from broken_rules(value, f"{path}.{alias}")


def _read_metadata(body: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what the API server writes into metadata and we do not read."""
    metadata = body.get("metadata")
    if not isinstance(metadata, Mapping):
        return dict(body)
    kept = {
        key: value
        for key, value in metadata.items()
        if key not in _SERVER_METADATA and not (value is None and key in ("labels", "annotations"))
    }
    return {**body, "metadata": kept}


def _untextual_keys(body: Mapping[Any, Any]) -> list[Problem]:
    """Return every mapping with a key that is no text: YAML reads `1:` and `on:` as a number and a truth value."""
    problems = []
    seen: set[int] = set()
    pending: list[tuple[tuple[int | str, ...], object]] = [((), body)]
    while pending:
        path, node = pending.pop()
        if id(node) in seen or len(path) > _DEEPEST or not isinstance(node, (Mapping, list)):
            continue
        seen.add(id(node))
        entries = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in entries:
            if isinstance(node, list) or isinstance(key, str):
                pending.append(((*path, key), value))
            else:
                problems.append(Problem(json_path(path), f"has a key that is {kind_of(key)}, not text: put the key in quotes"))
    return problems
