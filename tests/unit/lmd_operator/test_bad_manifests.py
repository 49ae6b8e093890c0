"""The table in bad_manifests.yaml: each document is refused with exactly these sentences, and by whom it says."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmd_operator.api.parse import parse
from lmd_operator.errors import InvalidSpecError, LmdError

TABLE = yaml.safe_load((Path(__file__).parent / "bad_manifests.yaml").read_text())
CASES = [pytest.param(case, id=case["name"]) for case in TABLE["cases"]]
BY = ("document", "strict", "schema", "cel", "semantics", "availability")


def manifest(case: dict[str, Any]) -> Any:
    """The document of a case: `text` or `document` as it stands, else the base with pointers removed and set."""
    if "text" in case:
        return yaml.safe_load(case["text"])
    if "document" in case:
        return case["document"]
    document = copy.deepcopy(TABLE["base"])
    for pointer in case.get("remove", []):
        parent, key = _parent(document, pointer)
        del parent[key]
    for pointer, value in case.get("set", {}).items():
        parent, key = _parent(document, pointer)
        parent[key] = value
    return document


def _parent(document: Any, pointer: str) -> tuple[Any, str]:
    *way, key = [step.replace("~1", "/").replace("~0", "~") for step in pointer.removeprefix("/").split("/")]
    for step in way:
        document = document[step]
    return document, key


def test_the_base_is_good(api_server: Any) -> None:
    parse(TABLE["base"])
    stored = api_server.defaulted(TABLE["base"])
    assert (api_server.shape_errors(stored), api_server.rule_errors(stored)) == ([], [])


def test_the_table_is_large_and_names_every_kind_of_refusal() -> None:
    names = Counter(case["name"] for case in TABLE["cases"])
    assert len(names) == len(TABLE["cases"]) >= 80
    assert {case["by"] for case in TABLE["cases"]} == set(BY)


@pytest.mark.parametrize("case", CASES)
def test_a_bad_manifest_is_refused_with_these_words(case: dict[str, Any]) -> None:
    with pytest.raises(LmdError) as caught:
        parse(manifest(case))
    error = caught.value
    said = [str(problem) for problem in error.problems] if isinstance(error, InvalidSpecError) else [str(error)]
    assert said == case["says"]
    assert str(error) == "\n".join(case["says"])


@pytest.mark.parametrize("case", CASES)
def test_the_api_server_refuses_what_the_table_says_it_refuses(case: dict[str, Any], api_server: Any) -> None:
    document = json.loads(json.dumps(manifest(case), default=str))  # as clients send it: dates and keys are text
    if not isinstance(document, dict) or "metadata" not in document or not isinstance(document["metadata"].get("name"), str):
        assert case["by"] == "document"
        return
    stored = api_server.defaulted(document)
    shape = api_server.shape_errors(stored)
    rules = [] if shape else api_server.rule_errors(stored)
    assert ("schema" if shape else "cel" if rules else None) == (case["by"] if case["by"] in ("schema", "cel") else None), [*shape, *rules]


@pytest.mark.parametrize("case", [case for case in CASES if case.values[0]["by"] == "strict"])
def test_unknown_fields_of_a_live_object_are_ignored(case: dict[str, Any]) -> None:
    parse(manifest(case), strict=False)
