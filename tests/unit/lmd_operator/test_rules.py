"""Every rule over several fields says the same in CEL, to the API server, and in Python, to us."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmd_operator.api.base import ApiModel, Rule
from lmd_operator.api.engine import Accelerator, CustomHandler, Parallelism
from lmd_operator.api.fields import alias_of, model_in
from lmd_operator.api.model import ClaimSource, HuggingFaceSource, ImageSource, Model, ModelSource, PathSource, S3Source
from lmd_operator.api.pods import Autoscaling, Rollout
from lmd_operator.api.v1alpha1 import Spec

SOURCE = {"path": {"path": "/models/a"}}
STRATEGIES = ["Auto", "DeepSpeed", "Tensor", "Expert", "Pipeline", "PipelineTensor", "Accelerate", "ZeroInference", "None"]
SEGMENTS = st.lists(st.sampled_from(["a", "..", ".", "...", "..a", "", " "]), max_size=5).map("/".join)
ENDPOINTS = st.sampled_from(["https://a.example.com", "https://user:word@a.example.com", "http://a:80/b"])
AMOUNT = st.sampled_from([0, 1, 2, "0%", "1%", "50%", "100%"])


def _object(required: dict[str, Any] | None = None, **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    """A JSON object with these fields; an optional one is there, is null, or is not."""
    return st.fixed_dictionaries(required or {}, optional=optional)


def _nullable(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


AUTOSCALING = _object({"maxReplicas": st.integers(1, 6)}, minReplicas=st.integers(1, 6))
DOCUMENTS: dict[type[ApiModel], st.SearchStrategy[dict[str, Any]]] = {
    Parallelism: _object(
        strategy=st.sampled_from(STRATEGIES),
        tensor=st.sampled_from([1, 2, 8, "Auto"]),
        pipeline=st.integers(1, 3),
        expert=st.integers(1, 3),
        data=st.integers(1, 3),
    ),
    Accelerator: _object(type=st.sampled_from(["Nvidia", "CPU"]), memory=_nullable(st.just("80Gi"))),
    CustomHandler: _object(
        configMapRef=_nullable(st.just({"name": "a"})),
        module=_nullable(st.just("a.b:c")),
        archive=_nullable(st.sampled_from(["a.mar", "/a.mar", "../a.mar", "b/..a.mar"])),
    ),
    HuggingFaceSource: _object({"repository": st.just("a/b")}, endpoint=_nullable(ENDPOINTS)),
    S3Source: _object({"uri": st.just("s3://bucket")}, endpoint=_nullable(ENDPOINTS)),
    ClaimSource: _object({"claimName": st.just("a")}, path=SEGMENTS.filter(lambda path: not path.startswith("/"))),
    Model: _object(
        {"source": st.sampled_from([SOURCE, {"huggingFace": {"repository": "a/b"}}])},
        cache=_nullable(st.just({"claimName": "a"})),
    ),
    ImageSource: _object({"reference": st.just("a:1")}, path=SEGMENTS.map(lambda path: f"/{path}")),
    PathSource: _object({"path": SEGMENTS.map(lambda path: f"/{path}")}),
    ModelSource: _object(
        huggingFace=_nullable(st.just({"repository": "a/b"})),
        s3=_nullable(st.just({"uri": "s3://bucket"})),
        persistentVolumeClaim=_nullable(st.just({"claimName": "a"})),
        image=_nullable(st.just({"reference": "a:1"})),
        path=_nullable(st.just(SOURCE["path"])),
    ),
    Rollout: _object(
        strategy=st.sampled_from(["Auto", "RollingUpdate", "Recreate"]), maxSurge=_nullable(AMOUNT), maxUnavailable=_nullable(AMOUNT)
    ),
    Autoscaling: AUTOSCALING,
    Spec: _object(
        {"model": st.sampled_from([{"source": SOURCE}, {"source": {"huggingFace": {"repository": "a/b"}}}])},
        handler=_nullable(st.sampled_from([{"module": "a.b"}, {"archive": "a.mar"}])),
        replicas=st.integers(0, 7),
        autoscaling=_nullable(AUTOSCALING),
        accelerator=st.sampled_from([{}, {"type": "CPU"}, {"type": "Nvidia"}]),
        engine=st.sampled_from([{}, {"dtype": "float16"}, {"dtype": "float32"}]),
    ),
}


def _places(model: type[ApiModel], schema: dict[str, Any]) -> dict[type[ApiModel], dict[str, Any]]:
    """Where each model with rules stands in the schema."""
    found = {model: schema} if model.rules else {}
    for name, field in model.model_fields.items():
        inner = model_in(field.annotation)
        if inner is not None and issubclass(inner, ApiModel):
            found |= _places(inner, schema["properties"][alias_of(model, name)])
    return found


def _rules(*, about_a_change: bool) -> list[Any]:
    models = [model for model in _models(Spec) if model.rules]
    return [
        pytest.param(model, rule, id=f"{model.__name__} {rule.field} {rule.message[:40]}")
        for model in models
        for rule in model.rules
        if (rule.holds is None) == about_a_change
    ]


def _models(model: type[ApiModel]) -> list[type[ApiModel]]:
    inner = (model_in(field.annotation) for field in model.model_fields.values())
    return [model, *(deep for child in inner if child is not None and issubclass(child, ApiModel) for deep in _models(child))]


@pytest.fixture(scope="module")
def servers(api_server: Any) -> dict[type[ApiModel], Any]:
    """An API server for the part of the schema where each model stands."""
    places = _places(Spec, api_server.schema["properties"]["spec"])
    return {model: type(api_server)(schema) for model, schema in places.items()}


@pytest.mark.parametrize(("model", "rule"), _rules(about_a_change=False))
def test_cel_and_python_agree_and_the_rule_is_seen_kept_and_broken(model: type[ApiModel], rule: Rule, servers: Any) -> None:
    server, seen = servers[model], set()

    @settings(max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(DOCUMENTS[model])
    def agree(document: dict[str, Any]) -> None:
        stored = server.defaulted(document)
        assert server.shape_errors(stored) == []
        by_python = rule.holds is not None and rule.holds(model.model_validate(document, by_alias=True, by_name=False))
        assert server.evaluate(rule.cel, stored) == by_python
        seen.add(by_python)

    agree()
    assert seen == {True, False}


def test_the_crd_carries_every_rule(api_server: Any) -> None:
    for model, schema in _places(Spec, api_server.schema["properties"]["spec"]).items():
        assert [entry["rule"] for entry in schema["x-kubernetes-validations"]] == [rule.cel for rule in model.rules]


@pytest.mark.parametrize(
    ("before", "after", "allowed"),
    [
        pytest.param({}, {}, True, id="no name stays no name"),
        pytest.param({"name": "a"}, {"name": "a"}, True, id="a name stays"),
        pytest.param({"name": None}, {}, True, id="null is no name"),
        pytest.param({"name": "a"}, {"name": "b"}, False, id="another name"),
        pytest.param({"name": "a"}, {}, False, id="a name taken away"),
        pytest.param({}, {"name": "a"}, False, id="a name given later"),
    ],
)
def test_the_model_name_cannot_change(before: dict[str, Any], after: dict[str, Any], allowed: bool, servers: Any) -> None:
    [rule] = [each for each in Model.rules if each.holds is None]
    assert servers[Model].evaluate(rule.cel, {"source": SOURCE} | after, {"source": SOURCE} | before) is allowed


def test_rules_about_a_change_are_all_tested() -> None:
    assert [entry.values[0] for entry in _rules(about_a_change=True)] == [Model]


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("tensor", 1, True), ("tensor", 1024, True), ("tensor", "Auto", True), ("tensor", 0, False), ("tensor", 1025, False),
        ("tensor", "auto", False), ("tensor", "8", False), ("tensor", "", False), ("maxSurge", 0, True), ("maxSurge", 1000, True),
        ("maxSurge", "0%", True), ("maxSurge", "100%", True), ("maxSurge", -1, False), ("maxSurge", 1001, False),
        ("maxSurge", "101%", False), ("maxSurge", "00%", False), ("maxSurge", "5", False), ("maxSurge", "Auto", False),
    ],
)  # fmt: skip
def test_fields_of_two_kinds_take_the_same_values_in_cel_and_python(field: str, value: Any, allowed: bool, api_server: Any) -> None:
    model: type[ApiModel] = Parallelism if field == "tensor" else Rollout
    node = api_server.schema["properties"]["spec"]["properties"]["parallelism" if field == "tensor" else "rollout"]["properties"][field]
    assert (type(api_server)(node).rule_errors(value) == []) is allowed
    try:
        model.model_validate({field: value}, by_alias=True, by_name=False)
    except ValueError:
        assert not allowed
    else:
        assert allowed


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("a", True), ("llama-70b", True), ("a" * 52, True), ("a" * 53, False), ("70b", False), ("A", False), ("a-", False), ("a.b", False)],
)
def test_the_object_name_is_judged_alike(name: str, allowed: bool, api_server: Any) -> None:
    document = {"metadata": {"name": name}, "spec": {"model": {"source": SOURCE}}}
    assert (api_server.rule_errors(api_server.defaulted(document)) == []) is allowed
