"""The table in bad_manifests.yaml: each document is refused with exactly these sentences, and by whom it says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmd_operator.api.parse import parse
from lmd_operator.errors import InvalidSpecError, LmdError

TABLE = yaml.safe_load((Path(__file__).parent / "bad_manifests.yaml").read_text())
BadManifest = Callable[[dict[str, Any]], Any]
CASES = [pytest.param(case, id=case["name"]) for case in TABLE["cases"]]
BY = ("document", "strict", "schema", "cel", "semantics", "availability")


def test_the_base_is_good(api_server: Any) -> None:
    parse(TABLE["base"])
    stored = api_server.defaulted(TABLE["base"])
    assert (api_server.shape_errors(stored), api_server.rule_errors(stored)) == ([], [])


def test_the_table_is_large_and_names_every_kind_of_refusal() -> None:
    names = Counter(case["name"] for case in TABLE["cases"])
    assert len(names) == len(TABLE["cases"]) >= 80
    assert {case["by"] for case in TABLE["cases"]} == set(BY)


@pytest.mark.parametrize("case", CASES)
def test_a_bad_manifest_is_refused_with_these_words(bad_manifest: BadManifest, case: dict[str, Any]) -> None:
    with pytest.raises(LmdError) as caught:
        parse(bad_manifest(case))
    error = caught.value
    said = [str(problem) for problem in error.problems] if isinstance(error, InvalidSpecError) else [str(error)]
    assert said == case["says"]
    assert str(error) == "\n".join(case["says"])


@pytest.mark.parametrize("case", CASES)
def test_the_api_server_refuses_what_the_table_says_it_refuses(bad_manifest: BadManifest, case: dict[str, Any], api_server: Any) -> None:
    document = json.loads(json.dumps(bad_manifest(case), default=str))  # as clients send it: dates and keys are text
    if not isinstance(document, dict) or "metadata" not in document or not isinstance(document["metadata"].get("name"), str):
        assert case["by"] == "document"
        return
    stored = api_server.defaulted(document)
    shape = api_server.shape_errors(stored)
    rules = [] if shape else api_server.rule_errors(stored)
    assert ("schema" if shape else "cel" if rules else None) == (case["by"] if case["by"] in ("schema", "cel") else None), [*shape, *rules]


@pytest.mark.parametrize("case", [case for case in CASES if case.values[0]["by"] == "strict"])
def test_unknown_fields_of_a_live_object_are_ignored(bad_manifest: BadManifest, case: dict[str, Any]) -> None:
    parse(bad_manifest(case), strict=False)
