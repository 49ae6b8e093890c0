"""Our CRD before a real API server: taken as it is, and refusing what the table of bad manifests says it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lmd_plane.client import Answer, Api

pytestmark = pytest.mark.cluster
REPOSITORY = Path(__file__).parents[2]
EXAMPLES = sorted((REPOSITORY / "crds" / "examples").glob("*.yaml"))
TABLE = yaml.safe_load((REPOSITORY / "tests/unit/lmd_operator/bad_manifests.yaml").read_text())
BadManifest = Callable[[dict[str, Any]], Any]
CASES = [pytest.param(case, id=case["name"]) for case in TABLE["cases"] if case["by"] != "document"]


def _sent(api: Api, document: Any, validation: str) -> Answer:
    body = json.loads(json.dumps(document, default=str))  # as clients send it: dates and keys are text
    body["metadata"].pop("namespace", None)
    query = {"dryRun": "All", "fieldValidation": validation}
    return api.request("POST", "/apis/largemodel.dev/v1alpha1/namespaces/default/largemodeldeployments", body, query=query)


def _rule_messages(schema: dict[str, Any]) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", []):
        yield rule["message"]
    for child in [*schema.get("properties", {}).values(), *(schema[key] for key in ("items", "additionalProperties") if key in schema)]:
        yield from _rule_messages(child)


@pytest.fixture(scope="session")
def rule_messages(crd: dict[str, Any]) -> set[str]:
    return set(_rule_messages(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]))


def test_the_crd_is_structural_and_its_names_are_accepted(crd: dict[str, Any]) -> None:
    conditions = {each["type"]: each["status"] for each in crd["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_accepted_as_they_stand(api: Api, crd: dict[str, Any], path: Path) -> None:
    answer = _sent(api, yaml.safe_load(path.read_text()), "Strict")
    assert answer.status == 201, answer.message


def test_the_base_of_the_table_is_accepted(api: Api, crd: dict[str, Any]) -> None:
    answer = _sent(api, TABLE["base"], "Strict")
    assert answer.status == 201, answer.message


@pytest.mark.parametrize("case", CASES)
def test_a_bad_manifest_is_refused_by_whom_the_table_says(
    api: Api, rule_messages: set[str], bad_manifest: BadManifest, case: dict[str, Any]
) -> None:
    answer = _sent(api, bad_manifest(case), "Ignore")
    ours = {message for message in rule_messages if message in answer.message}
    match case["by"]:
        case "schema":
            assert answer.status in (400, 422), "accepted"
            assert not ours, answer.message
        case "cel":
            assert answer.status == 422, answer.message
            expected = {message for message in rule_messages if any(line.endswith(message) for line in case["says"])}
            assert ours, answer.message
            assert expected <= ours, answer.message
        case _:
            assert answer.status == 201, answer.message


@pytest.mark.parametrize("case", CASES)
def test_strict_validation_refuses_unknown_fields_too(
    api: Api, crd: dict[str, Any], bad_manifest: BadManifest, case: dict[str, Any]
) -> None:
    answer = _sent(api, bad_manifest(case), "Strict")
    match case["by"]:
        case "strict":
            assert (answer.status, "unknown field" in answer.message) == (400, True), answer.message
        case "schema" | "cel":
            assert answer.status in (400, 422), "accepted"
        case _:
            assert answer.status == 201, answer.message
