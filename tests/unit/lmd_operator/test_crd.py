"""The CRD: equal to the generator's output, and within what Kubernetes accepts as a structural schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, StringConstraints

from lmd_operator.api.base import ApiModel
from lmd_operator.api.crd import custom_resource_definition, to_yaml
from lmd_operator.api.hints import BY_PATH, BY_PATTERN, CHOICES
from lmd_operator.api.parse import parse
from lmd_operator.api.structural import SchemaError, structural

CRD_FILE = Path(__file__).parents[3] / "crds/largemodel.dev_largemodeldeployments.yaml"
VERSION = custom_resource_definition()["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]
ALLOWED = {
    "additionalProperties", "default", "description", "enum", "format", "items", "maxItems", "maxLength", "maxProperties", "maximum",
    "minItems", "minLength", "minProperties", "minimum", "nullable", "pattern", "properties", "required", "type",
    "x-kubernetes-int-or-string", "x-kubernetes-list-map-keys", "x-kubernetes-list-type", "x-kubernetes-validations",
}  # fmt: skip


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


NODES = list(nodes(SCHEMA))
OURS = [(path, node) for path, node in NODES if path.startswith((".spec", ".status"))]


def test_the_committed_crd_is_what_the_models_generate() -> None:
    assert CRD_FILE.read_text() == to_yaml(), f"run: python -m lmd_operator.api.crd > {CRD_FILE.name}"


def test_only_keywords_of_structural_schemas_occur() -> None:
    assert {key for _, node in NODES for key in node} <= ALLOWED


def test_every_node_has_a_type_or_is_int_or_string() -> None:
    assert [path for path, node in NODES if ("type" in node) == bool(node.get("x-kubernetes-int-or-string"))] == []


def test_everything_of_open_size_is_bounded() -> None:
    texts = [path for path, node in OURS if node.get("type") == "string" and not node.keys() & {"maxLength", "enum", "format"}]
    either = [path for path, node in OURS if node.get("x-kubernetes-int-or-string") and "maxLength" not in node]
    lists = [path for path, node in OURS if node.get("type") == "array" and "maxItems" not in node]
    maps = [path for path, node in OURS if "additionalProperties" in node and "maxProperties" not in node]
    assert (texts, either, lists, maps) == ([], [], [], [])


def test_every_field_of_spec_and_status_has_a_description() -> None:
    assert [path for path, node in OURS if not path.endswith(("[]", "{}")) and not node.get("description")] == []


def test_objects_have_either_named_fields_or_free_keys() -> None:
    assert [
        path for path, node in OURS if node.get("type") == "object" and ("properties" in node) == ("additionalProperties" in node)
    ] == []


def test_required_fields_exist_and_have_no_default() -> None:
    required = [(f"{path}.{name}", node["properties"][name]) for path, node in NODES for name in node.get("required", [])]
    clashes = [path for path, child in required if "default" in child]
    assert clashes == []


def test_metadata_carries_no_schema_of_its_own() -> None:
    """Kubernetes allows restrictions of name and generateName there and nothing else."""
    assert SCHEMA["properties"]["metadata"] == {"type": "object"}


def test_status_has_no_defaults() -> None:
    assert [path for path, node in NODES if path.startswith(".status") and "default" in node] == []


def test_list_map_keys_are_required_or_defaulted_scalars() -> None:
    keyed = [(path, node) for path, node in NODES if "x-kubernetes-list-map-keys" in node]
    assert [path for path, _ in keyed] == [".status.conditions"]
    for _, node in keyed:
        for key in node["x-kubernetes-list-map-keys"]:
            assert key in node["items"]["required"]
            assert node["items"]["properties"][key]["type"] == "string"


@pytest.mark.parametrize("path", [path for path, node in NODES if "default" in node])
def test_a_default_is_valid_pruned_and_keeps_the_rules_as_it_is_written(path: str, api_server: Any) -> None:
    """The API server checks each default before the defaults inside it apply, rules included, or refuses the whole CRD."""
    node = dict(NODES)[path]
    server = type(api_server)(node)
    assert server.shape_errors(node["default"]) == []
    assert server.rule_errors(node["default"]) == []
    if isinstance(node["default"], dict) and "properties" in node:
        assert set(node["default"]) <= set(node["properties"])


@pytest.mark.parametrize("name", ["llama-70b.yaml", "mistral-7b.yaml", "qwen3-moe.yaml", "smollm2.yaml"])
def test_examples_pass_the_api_server_and_the_parser(name: str, examples: dict[str, Any], api_server: Any) -> None:
    stored = api_server.defaulted(examples[name])
    assert (api_server.shape_errors(stored), api_server.rule_errors(stored)) == ([], [])
    assert parse(examples[name]) == parse(stored)


def test_every_example_is_tested(examples: dict[str, Any]) -> None:
    assert len(examples) == 4


def test_the_defaults_of_the_crd_are_those_of_the_models(examples: dict[str, Any], api_server: Any) -> None:
    stored = api_server.defaulted(examples["mistral-7b.yaml"])
    ours = parse(examples["mistral-7b.yaml"]).spec.model_dump(by_alias=True, exclude_none=True)
    assert stored["spec"] == ours


def test_paths_of_columns_and_scale_exist() -> None:
    columns = [column["jsonPath"] for column in VERSION["additionalPrinterColumns"]]
    scale = [value for key, value in VERSION["subresources"]["scale"].items() if key.endswith("Path")]
    known = dict(NODES)
    plain = [re.sub(r"\[\?\(.*\)\]", "[]", path) for path in [*columns, *scale]]
    assert [path for path in plain if path not in known and not path.startswith(".metadata")] == []


def rules() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    return [(path, node, rule) for path, node in NODES for rule in node.get("x-kubernetes-validations", [])]


@pytest.mark.parametrize(("path", "node", "rule"), [pytest.param(*entry, id=f"{entry[0]} {entry[2]['message'][:50]}") for entry in rules()])
def test_a_rule_is_one_that_kubernetes_would_compile(path: str, node: dict[str, Any], rule: dict[str, Any]) -> None:
    assert set(rule) <= {"rule", "message", "fieldPath"}
    assert "\n" not in rule["message"]
    assert len(rule["message"]) <= 2048
    if "fieldPath" in rule:
        assert f"{path}{rule['fieldPath']}" in dict(NODES)
    known = dict(NODES) | {".metadata.name": {}}
    for read in re.findall(r"\b(?:self|oldSelf)((?:\.[A-Za-z0-9]+)+)(\()?", rule["rule"]):
        steps = read[0].rpartition(".")[0] if read[1] else read[0]
        assert f"{path}{steps}" in known, f"{steps} is no field of {path or 'the object'}"
    for literal in re.findall(r"\[([^\[\]()]+)\](?!\*|\?|\))", re.sub(r"matches\('[^']*'\)", "", rule["rule"])):
        assert re.fullmatch(r"'[A-Za-z]+'(, '[A-Za-z]+')*", literal), "lists in CEL hold one type"


def test_every_pattern_and_choice_has_words_for_people() -> None:
    spec = [(path.removeprefix("."), node) for path, node in NODES if path.startswith(".spec")]
    patterns = {path: node["pattern"] for path, node in spec if "pattern" in node}
    assert [path for path, pattern in patterns.items() if path not in BY_PATH and pattern not in BY_PATTERN] == []
    either = {path for path, node in spec if node.get("x-kubernetes-int-or-string") or node.get("pattern", "").startswith("^$|")}
    assert either == CHOICES
    assert set(BY_PATH) - {path for path, _ in spec} == {"metadata.name", "metadata.namespace"}


class _Titled(ApiModel):
    """Has a field called title."""

    title: Annotated[str, StringConstraints(max_length=3)]
    """A title."""


class _Exclusive(ApiModel):
    """Uses a bound that a structural schema says differently."""

    number: Annotated[int, Field(gt=3)] = 4
    """A number."""


class _Mixed(ApiModel):
    """Uses a choice that no structural schema can say."""

    value: list[str] | bool = False
    """A value."""


def test_a_field_called_title_survives() -> None:
    assert list(structural(_Titled)["properties"]) == ["title"]


@pytest.mark.parametrize("model", [_Exclusive, _Mixed])
def test_what_a_structural_schema_cannot_say_is_refused(model: type[BaseModel]) -> None:
    with pytest.raises(SchemaError, match="no structural form"):
        structural(model)
