"""What is known of a model, of which source, and what is told while a plan waits for it."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import kubernetes_validate
import pytest

from lmd_operator import inspection
from lmd_operator.api.parse import parse
from lmd_operator.api.status import ModelFacts, Status
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.errors import InvalidSpecError
from lmd_operator.names import ANNOTATION_ORDER
from lmd_operator.observed import DeploymentState, JobState, PodState, TaskState, pod_state
from lmd_operator.resources.desired import desired, document
from lmd_operator.resources.inspection import inspecting
from lmd_operator.settings import Settings
from lmd_operator.status import Observed, summarize, undecided
from lmd_worker.__main__ import COMMANDS
from lmd_worker.weights.source import Order

HUB = {"huggingFace": {"repository": "acme/model", "tokenSecretRef": {"name": "hub", "key": "token"}}}
CLAIM = {"persistentVolumeClaim": {"claimName": "models", "path": "llama"}}
IMAGE = {"image": {"reference": "registry.example.com/models/small:1", "path": "/model"}}
PATH = {"path": {"path": "/models/llama"}}
OUTLINE = {"config": {"model_type": "llama"}, "tensors": [["model.*", "BF16", [2, 2], 1]]}
RUNS = JobState(is_complete=False, is_suspended=False, failure="")
T1, T2 = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
FACTS = {
    "family": "llama",
    "parameters": 7,
    "bytes": 14,
    "heads": 9,
    "key_value_heads": 3,
    "layers": 2,
    "experts": 0,
    "context_tokens": 512,
}


def packed(document: object) -> str:
    return base64.b64encode(zlib.compress(json.dumps(document).encode())).decode()


def an_owner(source: Mapping[str, Any] = HUB, *, tensor: int | str = "Auto", generation: int = 3) -> LargeModelDeployment:
    return parse(
        {
            "apiVersion": "largemodel.dev/v1alpha1",
            "kind": "LargeModelDeployment",
            "metadata": {"name": "small", "namespace": "prod", "uid": "u1", "generation": generation},
            "spec": {"model": {"source": source}, "parallelism": {"tensor": tensor}},
        }
    )


def a_pod(container: dict[str, Any]) -> PodState:
    return pod_state(
        {
            "metadata": {"name": "pod", "labels": {"batch.kubernetes.io/job-name": "look"}},
            "status": {
                "conditions": [{"type": "PodScheduled", "status": "True"}],
                "containerStatuses": [{"name": "inspect", "restartCount": 0, **container}],
            },
        }
    )


def done(words: str) -> PodState:
    return a_pod({"state": {"terminated": {"exitCode": 0, "message": words}}})


def failed(message: str, restarts: int = 1) -> PodState:
    ended = {"terminated": {"exitCode": 1, "message": message}}
    return a_pod({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended, "restartCount": restarts})


SAID = json.dumps({"model": {**FACTS, "revision": "c" * 40, "dtype": "BF16", "quantization": ""}, "outline": packed(OUTLINE)})


def test_only_a_degree_that_is_to_be_planned_needs_a_look() -> None:
    assert inspection.is_needed(an_owner())
    assert not inspection.is_needed(an_owner(tensor=2))


def test_what_a_job_said_is_known_of_its_source_alone() -> None:
    owner = an_owner()
    model = inspection.told(owner, [done(SAID)])
    assert model is not None
    assert (model.family, model.key_value_heads, model.revision) == ("llama", 3, "c" * 40)
    assert inspection.known(owner, Status(model=model)) == model
    assert inspection.outline(model) == OUTLINE
    for other in ({"huggingFace": {"repository": "acme/model", "revision": "v2"}}, CLAIM, IMAGE, PATH):
        assert inspection.known(an_owner(other), Status(model=model)) is None
    assert inspection.known(owner, Status()) is None


def test_sources_have_names_of_their_own_that_a_token_does_not_change() -> None:
    sources: list[Mapping[str, Any]] = [HUB, CLAIM, IMAGE, PATH, {**CLAIM, "persistentVolumeClaim": {"claimName": "models"}}]
    keys = [inspection.source_key(an_owner(source)) for source in sources]
    assert len(set(keys)) == len(keys)
    assert inspection.source_key(an_owner({"huggingFace": {"repository": "acme/model"}})) == keys[0]
    assert all(len(key) <= 317 for key in keys)


@pytest.mark.parametrize(
    "words",
    ["", "[]", "{", "{}", '{"model": 1}', '{"model": {"family": 1}}', json.dumps({"model": FACTS, "outline": "x" * 8193})],
)
def test_last_words_that_are_none_say_nothing(words: str) -> None:
    assert inspection.told(an_owner(), [done(words)]) is None


def test_an_outline_is_the_shape_that_is_planned() -> None:
    assert inspection.shape(None) is None
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128,
              "intermediate_size": 128}  # fmt: skip
    found = inspection.shape(ModelFacts(outline=packed({"config": config, "tensors": []})))
    assert found is not None
    assert (found.family, found.hidden, found.layers, found.heads) == ("llama", 64, 2, 4)


@pytest.mark.parametrize("document", [{"config": {}, "tensors": []}, {"config": {"model_type": "llama"}, "tensors": [5]}])
def test_an_outline_of_no_model_is_refused_and_not_tried_for_ever(document: object) -> None:
    with pytest.raises(InvalidSpecError, match=r"spec\.model\.source cannot be planned: "):
        inspection.shape(ModelFacts(outline=packed(document)))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="none"),
        pytest.param("not base64!", id="no text"),
        pytest.param(base64.b64encode(b"not deflated").decode(), id="not deflated"),
        pytest.param(packed([]), id="a list"),
        pytest.param(packed({"config": {}}), id="no tensors"),
        pytest.param(base64.b64encode(zlib.compress(b"[" * 5000)).decode(), id="deep"),
        pytest.param(base64.b64encode(zlib.compress(b'{"config": {}, "tensors": []' + b" " * 2**22 + b"}", 9)).decode(), id="a bomb"),
    ],
)
def test_an_outline_that_is_none_is_not_known(text: str) -> None:
    assert inspection.outline(ModelFacts(outline=text)) is None


@pytest.mark.parametrize("source", [HUB, CLAIM, IMAGE, PATH], ids=lambda source: next(iter(source)))
def test_the_job_is_valid_and_reads_its_source_where_it_is(source: dict[str, Any]) -> None:
    policy, job = (document(resource) for resource in inspecting(an_owner(source), Settings()))
    for content in (policy, job):
        kubernetes_validate.validate(content, kubernetes_validate.latest_version(), strict=True)
    template = job["spec"]["template"]
    order = Order.model_validate(json.loads(template["metadata"]["annotations"][ANNOTATION_ORDER]))
    (container,) = template["spec"]["containers"]
    assert container["command"][1] in COMMANDS
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert ("weights" in volumes) is (source in (CLAIM, IMAGE))
    if "weights" in volumes:
        assert mounts["weights"]["readOnly"] is True
    if source is not HUB:
        assert order.source.kind == "directory"
        assert (
            order.source.path
            == {"persistentVolumeClaim": "/models/llama", "image": "/models/model", "path": "/models/llama"}[next(iter(source))]
        )
    assert ("HF_TOKEN" in [variable["name"] for variable in container["env"]]) is (source is HUB)
    assert bool(policy["spec"]["egress"]) is (source is HUB)
    assert "nvidia.com/gpu" not in json.dumps(job)


@pytest.mark.parametrize(
    ("task", "reason", "words", "verdict"),
    [
        (TaskState("look", None), "PodsPending", "Job look is being started", "InProgress"),
        (TaskState("look", RUNS, (a_pod({"state": {"running": {}}}),)), "Inspecting", "configuration and headers", "InProgress"),
        (TaskState("look", RUNS, (failed("SourceNotFound: no such model; correct it."),)), "SourceNotFound", "correct it", "InProgress"),
        (TaskState("look", RUNS, (failed("SourceNotFound: no such model; correct it.", 6),)), "SourceNotFound", "correct it", "Failed"),
        (TaskState("look", JobState(False, False, "deadline")), "FetchFailed", "delete it", "Failed"),
    ],
)
def test_what_a_plan_waits_for_is_told(
    kstatus: Callable[[Mapping[str, Any]], str], task: TaskState, reason: str, words: str, verdict: str
) -> None:
    status = undecided(an_owner(), task, Observed(None, (), (), ()), Status(), T1)
    found = {condition.type: condition for condition in status.conditions}
    assert len(found) == 6
    assert (found["Accepted"].status, found["Planned"].status, found["Planned"].reason) == ("True", "False", "ModelUnknown")
    assert (found["Ready"].status, found["Ready"].reason) == ("False", reason)
    assert words in found["Planned"].message
    content = status.model_dump(by_alias=True, exclude_none=True, mode="json")
    assert kstatus({"metadata": {"generation": 3}, "status": content}) == verdict
    assert undecided(an_owner(), task, Observed(None, (), (), ()), status, T2) == status, "nothing new is told twice"


def test_what_ran_before_is_told_of_while_another_model_is_looked_at() -> None:
    before = an_owner(tensor=2, generation=2)
    built = desired(before, Settings())
    state = DeploymentState(generation=1, observed_generation=1, replicas=1, ready=1, updated=1, available=1, is_stuck=False, failure="")
    pod = pod_state(
        {
            "metadata": {"name": "a", "labels": {"largemodel.dev/revision": built.files.revision}},
            "status": {
                "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "worker", "started": True, "state": {"running": {}}}],
            },
        }
    )
    seen = Observed(state, (pod,), (), ())
    first = summarize(before, built, seen, Status(), T1)
    status = undecided(an_owner(generation=3), TaskState("look", RUNS), seen, first, T2)
    found = {condition.type: condition for condition in status.conditions}
    assert (found["Ready"].status, found["Ready"].observed_generation) == ("True", 2)
    assert "the newest spec is not planned yet" in found["Ready"].message
    assert (found["Planned"].status, found["Reconciling"].status, status.ready_replicas) == ("False", "True", 1)
    assert status.revision == first.revision


def test_a_fetch_leaves_what_an_inspection_said() -> None:
    """Its last words hold no outline, and a restarted operator plans from the status."""
    owner = an_owner(tensor=2)
    built = desired(owner, Settings())
    known = inspection.told(owner, [done(SAID)])
    words = json.dumps({"revision": "c" * 40, "bytes": 20, "model": {**FACTS, "revision": ""}})
    pod = pod_state(
        {
            "metadata": {"name": "a", "labels": {"largemodel.dev/revision": built.files.revision}},
            "status": {"initContainerStatuses": [{"name": "fetch", "state": {"terminated": {"exitCode": 0, "message": words}}}]},
        }
    )
    status = summarize(owner, built, Observed(None, (pod,), (), ()), Status(model=known), T1)
    assert status.model == known
