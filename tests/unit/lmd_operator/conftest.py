"""What a Kubernetes API server does with an object of ours, as far as the CRD decides it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cel_expr_python import cel
from cel_expr_python.ext import ext_strings

from lmd_operator.api.crd import custom_resource_definition

REPOSITORY = Path(__file__).parents[3]
Schema = dict[str, Any]


class ApiServer:
    """Admit objects as apiextensions does: drop nulls, apply defaults, check the schema, then evaluate the rules."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._validator = jsonschema.Draft202012Validator(_as_json_schema(schema))
        self._env = cel.NewEnv(variables={"self": cel.Type.DYN, "oldSelf": cel.Type.DYN}, extensions=[ext_strings.ExtStrings()])
        self._compiled: dict[str, Any] = {}

    def defaulted(self, document: Any) -> Any:
        """Return the document as it would be stored: nulls of fields that take none dropped, defaults applied."""
        return _defaulted(self.schema, copy.deepcopy(document))

    def shape_errors(self, document: Any) -> list[str]:
        """Return what the schema refuses in a stored document."""
        return [f"{error.json_path} {error.message}" for error in self._validator.iter_errors(document)]

    def rule_errors(self, document: Any) -> list[str]:
        """Return the messages of the rules that a stored document breaks; rules about a change are not asked."""
        return list(self._rule_errors(self.schema, document))

    def evaluate(self, rule: str, value: Any, old: Any = None) -> bool:
        """Return what a rule says of a value, where null fields are absent ones, as in Kubernetes."""
        if rule not in self._compiled:
            self._compiled[rule] = self._env.compile(rule)
        result = self._compiled[rule].eval(data={"self": _without_nulls(value), "oldSelf": _without_nulls(old)})
        assert result.type() == cel.Type.BOOL, f"{rule}: {result.value()}"
        return bool(result.value())

    def _rule_errors(self, schema: Schema, value: Any) -> Iterator[str]:
        if value is None:
            return
        for entry in schema.get("x-kubernetes-validations", []):
            if "oldSelf" not in entry["rule"] and not self.evaluate(entry["rule"], value):
                yield entry["message"]
        for child, inner in _children(schema, value):
            yield from self._rule_errors(child, inner)


def _children(schema: Schema, value: Any) -> Iterator[tuple[Schema, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            child = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if child is not None:
                yield child, inner
    elif isinstance(value, list) and "items" in schema:
        for inner in value:
            yield schema["items"], inner


def _defaulted(schema: Schema, value: Any) -> Any:
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        for key in [key for key, inner in value.items() if inner is None and not properties.get(key, {"nullable": True}).get("nullable")]:
            del value[key]
        for key, child in properties.items():
            if "default" in child and key not in value:
                value[key] = copy.deepcopy(child["default"])
    for child, inner in list(_children(schema, value)):
        _defaulted(child, inner)
    return value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _as_json_schema(schema: Schema) -> Schema:
    """Say `nullable` and `x-kubernetes-int-or-string` in plain JSON Schema."""
    plain = {key: value for key, value in schema.items() if not key.startswith("x-") and key != "nullable"}
    types = ["integer", "string"] if schema.get("x-kubernetes-int-or-string") else [schema["type"]]
    plain["type"] = [*types, "null"] if schema.get("nullable") else types
    if "enum" in plain and schema.get("nullable"):
        plain["enum"] = [*plain["enum"], None]
    if "properties" in plain:
        plain["properties"] = {name: _as_json_schema(child) for name, child in plain["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in plain:
            plain[key] = _as_json_schema(plain[key])
    return plain


@pytest.fixture(scope="session")
def api_server() -> ApiServer:
    """The API server with the generated CRD installed."""
    return ApiServer(custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"])


@pytest.fixture(scope="session")
def examples() -> dict[str, dict[str, Any]]:
    """Every manifest of crds/examples by file name."""
    return {path.name: yaml.safe_load(path.read_text()) for path in sorted((REPOSITORY / "crds/examples").glob("*.yaml"))}


@pytest.fixture(scope="session")
def kstatus() -> Callable[[Mapping[str, Any]], str]:
    """What Flux, Helm 4 and kpt read from an object of a kind they do not know."""
    return _kstatus


def _kstatus(document: Mapping[str, Any]) -> str:
    """Return the verdict on a custom resource.

    Source: kubernetes-sigs/cli-utils pkg/kstatus/status/{generic,status}.go (5895ad6), without the rules of built-in kinds:
    deletion, then the generation, then Reconciling and Stalled in the order in which they stand, then Ready, else Current.
    """
    metadata, status = document.get("metadata", {}), document.get("status", {})
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    if "generation" in metadata and "observedGeneration" in status and status["observedGeneration"] != metadata["generation"]:
        return "InProgress"
    conditions = [(condition["type"], condition["status"]) for condition in status.get("conditions", [])]
    for condition in conditions:
        if condition == ("Reconciling", "True"):
            return "InProgress"
        if condition == ("Stalled", "True"):
            return "Failed"
    for name, truth in conditions:
        if name == "Ready" and truth in ("True", "False", "Unknown"):
            return "Current" if truth == "True" else "InProgress"
    return "Current"
