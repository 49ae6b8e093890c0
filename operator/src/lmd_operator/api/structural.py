"""pydantic's JSON Schema -> the subset a CustomResourceDefinition may hold (a structural schema).

pydantic says `$ref`, `anyOf` with null, `const` and `title`; Kubernetes knows none of them. One recursive pass inlines,
translates and drops, and raises on any keyword it does not know, so that nothing reaches the API server unexamined.
Rules of our models become `x-kubernetes-validations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from lmd_operator.api.base import ApiModel, Rule

Schema = dict[str, Any]

_KEPT = (
    "description", "type", "format", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "minProperties", "maxProperties", "x-kubernetes-int-or-string", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
)  # fmt: skip
_DROPPED = ("title", "default", "additionalProperties", "properties", "required", "items", "anyOf", "allOf", "$ref", "$defs", "const",
            "propertyNames", "patternProperties", "x-lmd-rule", "x-lmd-message")  # fmt: skip
STRING_MAX_LENGTH = 4096
ITEMS_MAX = 64
"""Bounds for what the Kubernetes types leave open, so that the cost of validation is bounded too."""


class SchemaError(ValueError):
    """A model uses something a structural schema cannot say."""


def structural(model: type[BaseModel], *, defaults: bool = True) -> Schema:
    """Return the structural schema of a model; `defaults` False leaves them out, as for a status.

    Raises `SchemaError` on a keyword outside the translation.
    """
    document = model.model_json_schema(by_alias=True)
    schema = _Translation(document.get("$defs", {}), defaults=defaults).schema(document)
    _add_rules(model, schema)
    return schema


class _Translation:
    """One pass over one document; holds what it may refer to."""

    def __init__(self, definitions: Mapping[str, Schema], *, defaults: bool) -> None:
        self._definitions = definitions
        self._defaults = defaults

    def schema(self, node: Schema) -> Schema:
        node, nullable = _without_null(self._inlined(node))
        node = self._inlined(node)
        unknown = set(node) - set(_KEPT) - set(_DROPPED)
        if unknown:
            raise SchemaError(f"no structural form for {sorted(unknown)} in {node}")
        result: Schema = {key: node[key] for key in _KEPT if key in node}
        if "const" in node:
            result |= {"type": "string", "enum": [node["const"]]}
        if "anyOf" in node:
            result |= self._one_of_texts(node["anyOf"])
        if "description" in result:
            result["description"] = _prose(result["description"])
        self._children(node, result)
        _bound(result)
        result |= _int_or_string(node)
        if nullable:
            result["nullable"] = True
        if self._defaults and "default" in node and node["default"] is not None:
            result["default"] = {} if isinstance(node["default"], dict) else node["default"]
        return result

    def _children(self, node: Schema, result: Schema) -> None:
        if "properties" in node:
            result["properties"] = {name: self.schema(child) for name, child in node["properties"].items()}
            if node.get("required"):
                result["required"] = sorted(node["required"])
        elif isinstance(node.get("additionalProperties"), dict):
            result["additionalProperties"] = self.schema(node["additionalProperties"])
        elif len(node.get("patternProperties", {})) == 1:  # what keys look like cannot be said; what stands under them can
            result["additionalProperties"] = self.schema(*node["patternProperties"].values())
        if "items" in node:
            result["items"] = self.schema(node["items"])

    def _one_of_texts(self, branches: list[Schema]) -> Schema:
        """Only `a pattern or a fixed word` occurs besides null: both are text, so one pattern says it."""
        texts = [self._inlined(branch) for branch in branches]
        words = [text["const"] for text in texts if "const" in text]
        patterns = [text["pattern"] for text in texts if "pattern" in text]
        if len(words) + len(patterns) != len(texts) or len(patterns) != 1 or words != [""]:
            raise SchemaError(f"no structural form for a choice between {branches}")
        return {
            "type": "string",
            "pattern": f"^$|{patterns[0]}",
            "maxLength": next(text["maxLength"] for text in texts if "pattern" in text),
        }

    def _inlined(self, node: Schema) -> Schema:
        if "$ref" not in node:
            return node
        target = self._definitions[node["$ref"].removeprefix("#/$defs/")]
        return {**target, **{key: value for key, value in node.items() if key != "$ref"}}


def _without_null(node: Schema) -> tuple[Schema, bool]:
    branches = node.get("anyOf", [])
    kept = [branch for branch in branches if branch != {"type": "null"}]
    if len(kept) == len(branches):
        return node, False
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    return ({**kept[0], **rest} if len(kept) == 1 else {**rest, "anyOf": kept}), True


def _prose(text: str) -> str:
    """First paragraphs only: the Kubernetes client appends notes about its own Python attributes."""
    return " ".join(text.split("Attributes:")[0].split())


def _bound(schema: Schema) -> None:
    """Give everything of open size a bound."""
    match schema.get("type"):
        case "string" if "enum" not in schema and "format" not in schema:
            schema.setdefault("maxLength", STRING_MAX_LENGTH)
        case "array":
            schema.setdefault("maxItems", ITEMS_MAX)
        case "object" if "additionalProperties" in schema:
            schema.setdefault("maxProperties", ITEMS_MAX)
        case "integer":
            schema.setdefault("format", "int64")


def _int_or_string(node: Schema) -> Schema:
    if "x-lmd-rule" not in node:
        return {}
    return {"x-kubernetes-validations": [{"rule": node["x-lmd-rule"], "message": node["x-lmd-message"]}]}


def _add_rules(model: type[BaseModel], schema: Schema) -> None:
    """Attach every model's rules where its object stands in the schema."""
    rules: tuple[Rule, ...] = model.rules if issubclass(model, ApiModel) else ()
    if rules:
        schema["x-kubernetes-validations"] = [
            {"rule": rule.cel, "message": _message(rule)} | ({"fieldPath": f".{rule.field}"} if rule.field else {}) for rule in rules
        ]
        _spell_out_default(schema)
    for name, field in model.model_fields.items():
        child = schema.get("properties", {}).get(field.serialization_alias or field.alias or name)
        inner = _api_model(field.annotation)
        if child is not None and inner is not None:
            _add_rules(inner, child)


def _spell_out_default(schema: Schema) -> None:
    """Replace a default of `{}` by the defaults of its fields.

    The API server runs the rules on a default as it is written, before the defaults inside it apply: on `{}` a rule that
    reads a field ends in "no such key" and the whole CRD is refused. Source: ValidateDefaults in apiextensions-apiserver.
    """
    if schema.get("default") == {}:
        schema["default"] = {name: child["default"] for name, child in schema["properties"].items() if "default" in child}


def _message(rule: Rule) -> str:
    return f"{rule.field} {rule.message}" if rule.field else rule.message


def _api_model(annotation: Any) -> type[ApiModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        return annotation
    found = [_api_model(argument) for argument in getattr(annotation, "__args__", ())]
    return next((model for model in found if model is not None), None)
