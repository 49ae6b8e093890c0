"""Which fields exist where: what the models say about their own names on the wire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from lmd_operator.api.base import ApiModel
from lmd_operator.api.v1alpha1 import LargeModelDeployment, Spec


def fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Return the fields a person may write at a place; none where there is no object of fixed fields."""
    model: type[BaseModel] | None = LargeModelDeployment
    for part in location:
        if isinstance(part, str):
            model = _model_of_field(model, part) if model else None
    if model is None:
        return []
    return [alias_of(model, name) for name in model.model_fields if not (model is LargeModelDeployment and name == "status")]


def places_of(name: str) -> list[str]:
    """Return the paths of every field of our own with this name."""
    return [path for path in _paths() if path.rpartition(".")[2] == name]


def alias_of(model: type[BaseModel], name: str) -> str:
    """Return a field's name on the wire."""
    field = model.model_fields[name]
    return field.serialization_alias or field.alias or name


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model inside an annotation such as `list[X]` or `X | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (model_in(argument) for argument in getattr(annotation, "__args__", ()))
    return next((model for model in found if model is not None), None)


def python_named(
    value: object, annotation: Any = LargeModelDeployment, path: tuple[int | str, ...] = ()
) -> Iterator[tuple[int | str, ...]]:
    """Yield the path of every key that is the Python name of a field, not its name on the wire.

    The Kubernetes client's models take `toleration_seconds` for `tolerationSeconds`; the API server would drop it.
    """
    model = model_in(annotation)
    if model is None:
        return
    if isinstance(value, list):
        for index, entry in enumerate(value):
            if isinstance(entry, Mapping):
                yield from python_named(entry, model, (*path, index))
    elif isinstance(value, Mapping):
        aliases = {alias_of(model, name): field.annotation for name, field in model.model_fields.items()}
        for key, entry in value.items():
            if key in aliases:
                yield from python_named(entry, aliases[key], (*path, key))
            elif key in model.model_fields:
                yield (*path, key)


@cache
def _paths() -> tuple[str, ...]:
    return tuple(_walk(Spec, "spec"))


def _walk(model: type[BaseModel], path: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        here = f"{path}.{alias_of(model, name)}"
        yield here
        inner = model_in(field.annotation)
        if inner is not None and issubclass(inner, ApiModel):
            yield from _walk(inner, here)


def _model_of_field(model: type[BaseModel], alias: str) -> type[BaseModel] | None:
    for name, field in model.model_fields.items():
        if alias_of(model, name) == alias:
            return model_in(field.annotation)
    return None
