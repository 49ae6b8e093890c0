"""The edge: whatever comes in, an object or an `LmdError` comes out, and no value of the document is ever repeated."""

from __future__ import annotations

import copy
import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmd_operator.api.parse import parse
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.errors import InvalidSpecError, LmdError

SECRET = "hunter2SECRET"
HEAD = {"apiVersion": "largemodel.dev/v1alpha1", "kind": "LargeModelDeployment"}
FUZZ = settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["Auto", "8Gi", SECRET, f"{SECRET} {SECRET}", "\ud800", datetime.date(2026, 1, 31), b"\xff"])
)
KEYS = st.text(max_size=5) | st.sampled_from(
    ["spec", "metadata", "name", "model", "source", "path", "template", "env", "labels", "[key]", "constrained-int", "tensor", "value_from"]
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.integers(), inner, max_size=4), max_leaves=12
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything inside a document."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [found for key, inner in entries for found in ((*path, key), *places(inner, (*path, key)))]


def mutated(document: dict[str, Any], path: tuple[Any, ...], value: Any, key: str | None) -> dict[str, Any]:
    """The document with the value at a place, or under a new key at that place."""
    changed: Any = copy.deepcopy(document)
    node = changed
    for step in path[:-1]:
        node = node[step]
    if key is not None and isinstance(node[path[-1]], dict):
        node[path[-1]][key] = value
    else:
        node[path[-1]] = value
    return dict(changed)


def outcome(document: Any, *, strict: bool = True) -> str:
    """What is said about a document; anything but an `LmdError` fails the test."""
    try:
        parse(document, strict=strict)
    except LmdError as error:
        return str(error) or "refused without a word"
    return ""


@FUZZ
@given(ANYTHING)
def test_any_document_is_parsed_or_refused_in_words(document: Any) -> None:
    for whole in (
        document,
        {**HEAD, "spec": document},
        {**HEAD, "metadata": {"name": "a"}, "spec": {"model": document, "template": document}},
    ):
        assert SECRET not in outcome(whole)
        assert SECRET not in outcome(whole, strict=False)


@FUZZ
@given(st.data())
def test_a_mutated_example_is_parsed_or_refused_in_words(examples: dict[str, Any], data: st.DataObject) -> None:
    document = data.draw(st.sampled_from(list(examples.values())))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(document)))
        document = mutated(document, path, data.draw(ANYTHING), data.draw(st.none() | KEYS))
    assert SECRET not in outcome(document)


def test_no_value_is_repeated_wherever_it_stands(examples: dict[str, Any]) -> None:
    """Every place of every example, with values that are wrong almost everywhere."""
    for document in examples.values():
        for path in places(document):
            for value in (SECRET, f"{SECRET} ", [SECRET], {"a": SECRET}):
                assert SECRET not in outcome(mutated(document, path, value, None))


@pytest.mark.parametrize("twice", [True, False])
def test_names_of_variables_are_not_repeated(twice: bool, examples: dict[str, Any]) -> None:
    document = copy.deepcopy(examples["mistral-7b.yaml"])
    document["spec"]["template"] = {"env": [{"name": f"LMD_{SECRET}"}, *([{"name": f"LMD_{SECRET}"}] if twice else [])]}
    said = outcome(document)
    assert said
    assert SECRET not in said


def test_a_document_that_holds_itself_is_refused() -> None:
    labels: dict[str, Any] = {}
    labels["a"] = labels
    assert "spec.template.nodeSelector.a must be text" in outcome(
        {**HEAD, "metadata": {"name": "a"}, "spec": {"model": {"source": {"path": {"path": "/m"}}}, "template": {"nodeSelector": labels}}}
    )


def test_a_very_deep_document_is_refused() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert "spec must be a mapping, not a list" in outcome({**HEAD, "metadata": {"name": "a"}, "spec": deep})


def test_the_document_is_not_changed(examples: dict[str, Any]) -> None:
    for document in examples.values():
        before = copy.deepcopy(document)
        parse(document)
        assert document == before


def test_what_the_api_server_adds_is_not_refused(examples: dict[str, Any]) -> None:
    document = copy.deepcopy(examples["llama-70b.yaml"])
    document["metadata"] |= {
        "uid": "u",
        "generation": 3,
        "resourceVersion": "7",
        "managedFields": [],
        "creationTimestamp": "t",
        "labels": None,
    }
    document["status"] = {"anything": 1}
    assert parse(document).metadata.generation == 3


SECRET_KEY = {"name": "hf", "key": "token"}
QUANTITY = st.sampled_from(["1", "500m", "1.5", "64Gi"])
SPECS = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries(
            {"source": st.just({"persistentVolumeClaim": {"claimName": "a", "path": "b/c"}})}, optional={"name": st.just("m")}
        )
    },
    optional={
        "parallelism": st.sampled_from([{}, {"strategy": "None"}, {"strategy": "DeepSpeed", "tensor": 4}, {"tensor": 2}]),
        "engine": st.fixed_dictionaries(
            {}, optional={"contextTokens": st.none() | st.integers(16, 9000), "torchServe": st.just({"jobQueueSize": 9})}
        ),
        "accelerator": st.sampled_from([{}, {"type": "CPU"}, {"memory": "80Gi"}, {"resourceName": "amd.com/gpu"}]),
        "replicas": st.integers(0, 1000),
        "rollout": st.sampled_from([{}, {"strategy": "RollingUpdate", "maxSurge": "25%", "maxUnavailable": 1}, {"strategy": "Recreate"}]),
        "suspend": st.booleans(),
        "restart": st.text(max_size=9),
        "template": st.fixed_dictionaries(
            {},
            optional={
                "metadata": st.just({"labels": {"team": "a", "example.com/a.b": ""}, "annotations": {"note": "x y"}}),
                "resources": st.fixed_dictionaries({"requests": st.dictionaries(st.sampled_from(["cpu", "storage"]), QUANTITY)}),
                "tolerations": st.just([{"key": "gpu", "operator": "Exists", "tolerationSeconds": 5}]),
                "affinity": st.just({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}),
                "topologySpreadConstraints": st.just([{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]),
                "env": st.just([{"name": "A", "valueFrom": {"secretKeyRef": SECRET_KEY}}, {"name": "B", "value": "c"}]),
                "imagePullSecrets": st.just([{"name": "pull"}]),
                "runtimeClassName": st.sampled_from(["", "nvidia"]),
            },
        ),
    },
)


@settings(FUZZ, max_examples=60)
@given(SPECS, st.booleans(), st.sampled_from(["python", "json"]))
def test_what_is_written_out_reads_back_as_the_same_object(spec: dict[str, Any], exclude_none: bool, mode: str) -> None:
    parsed = parse({**HEAD, "metadata": {"name": "a", "namespace": "b"}, "spec": spec})
    assert isinstance(parsed, LargeModelDeployment)
    assert parse(parsed.model_dump(mode=mode, by_alias=True, exclude_none=exclude_none)) == parsed


def test_problems_come_sorted_and_once() -> None:
    with pytest.raises(InvalidSpecError) as caught:
        parse({**HEAD, "metadata": {"name": "a"}, "spec": {"replicas": "x", "model": {}, "parallelism": {"tensor": "x"}}})
    paths = [problem.path for problem in caught.value.problems]
    assert paths == ["spec.model.source", "spec.parallelism.tensor", "spec.replicas"]


def test_a_live_object_has_its_fields_by_their_names_on_the_wire_only(examples: dict[str, Any]) -> None:
    document = copy.deepcopy(examples["mistral-7b.yaml"])
    document["spec"]["engine"] = {"context_tokens": 44}
    assert parse(document, strict=False).spec.engine.context_tokens is None
