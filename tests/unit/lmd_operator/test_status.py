"""What a user is told in every situation we know of: all six conditions, the counts, and what kstatus makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmd_operator.api import availability
from lmd_operator.api.parse import parse
from lmd_operator.api.status import Condition, Revision, Status
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.errors import Problem
from lmd_operator.observed import DeploymentState, PodState, pod_state
from lmd_operator.resources.desired import desired
from lmd_operator.settings import Settings
from lmd_operator.status import Observed, refused, summarize, verification, weights
from lmd_operator.status.causes import ORDER
from lmd_operator.status.summary import reason_of

T1, T2, T3 = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"
NEW, OLD = "new", "old"
NOTHING = Status()
Kstatus = Callable[[Mapping[str, Any]], str]


def an_owner(*, generation: int = 7, tensor: int = 4, **spec: Any) -> LargeModelDeployment:
    document = {
        "apiVersion": "largemodel.dev/v1alpha1",
        "kind": "LargeModelDeployment",
        "metadata": {"name": "llama", "namespace": "prod", "uid": "u1", "generation": generation},
        "spec": {
            "model": {"source": {"path": {"path": "/models/llama"}}},
            "parallelism": {"tensor": tensor},
            "replicas": 3,
            **spec,
        },
    }
    return parse(document)


REVISION = desired(an_owner(), Settings()).files.revision


def a_pod(name: str = "a", **changes: Any) -> PodState:
    """A pod that answers, of the newest revision."""
    pod = PodState(
        name=name,
        revision=NEW,
        is_going=False,
        is_ended=False,
        is_ready=True,
        is_scheduled=True,
        scheduling_message="",
        has_started=True,
        is_running=True,
        restarts=0,
        waiting="",
        waiting_message="",
        last_reason="",
        last_exit_code=0,
        last_message="",
    )
    pod = dataclasses.replace(pod, **changes)
    return dataclasses.replace(pod, revision={NEW: REVISION, OLD: "0ld"}.get(pod.revision, pod.revision))


def a_deployment(**changes: Any) -> DeploymentState:
    """A Deployment whose three replicas are new and ready."""
    state = DeploymentState(generation=4, observed_generation=4, replicas=3, ready=3, updated=3, available=3, is_stuck=False, failure="")
    return dataclasses.replace(state, **changes)


LOADING: dict[str, Any] = {"is_ready": False, "has_started": False}
WAITING: dict[str, Any] = {**LOADING, "is_running": False}
CRASHING: dict[str, Any] = {"waiting": "CrashLoopBackOff", "restarts": 5, "last_reason": "Error", "last_exit_code": 143}
PODS: dict[str, dict[str, Any]] = {
    "answering": {},
    "loading": LOADING,
    "waiting": WAITING,
    "unscheduled": {**WAITING, "is_scheduled": False},
    "crashing": {**WAITING, **CRASHING},
    "ended": {**WAITING, "is_ended": True, "last_reason": "ContainerStatusUnknown", "last_exit_code": 137},
}


def pods(count: int, like: str = "answering", **changes: Any) -> list[PodState]:
    return [a_pod(f"pod-{index}", **{**PODS[like], **changes}) for index in range(count)]


def observed(found: Sequence[PodState] = (), failures: Sequence[str] = (), **deployment: Any) -> Observed:
    return Observed(a_deployment(**deployment), tuple(found), (), tuple(failures))


def situations() -> Iterator[Any]:
    """Every situation of the file: the spec's changes, what is observed, and what is expected."""
    for entry in yaml.safe_load(Path(__file__).with_name("situations.yaml").read_text()):
        found: list[PodState] = []
        for group in entry.get("pods", []):
            changes = {key: value for key, value in group.items() if key not in ("is", "count")}
            for _ in range(group.get("count", 1)):
                found.append(a_pod(f"pod-{len(found)}", **{**PODS[group["is"]], **changes}))
        state = None if entry["deployment"] is None else a_deployment(**entry["deployment"])
        seen = Observed(state, tuple(found), (), tuple(entry.get("failures", [])), awaited=entry.get("awaited", ""))
        yield pytest.param(entry.get("spec", {}), seen, entry, id=entry["situation"])


SITUATIONS = list(situations())


def summary(seen: Observed, previous: Status = NOTHING, now: str = T1, **spec: Any) -> Status:
    owner = an_owner(**spec)
    return summarize(owner, desired(owner, Settings()), seen, previous, now)


def notation(status: Status) -> str:
    return " ".join(f"{condition.type}={condition.status}/{condition.reason}" for condition in status.conditions)


def document(status: Status, generation: int = 7) -> dict[str, Any]:
    return {"metadata": {"generation": generation}, "status": status.model_dump(by_alias=True, exclude_none=True, mode="json")}


def messages(status: Status) -> dict[str, str]:
    return {condition.type: condition.message for condition in status.conditions}


def by_type(status: Status) -> dict[str, Condition]:
    return {condition.type: condition for condition in status.conditions}


@pytest.mark.parametrize(("spec", "seen", "expected"), SITUATIONS)
def test_every_situation_is_told(kstatus: Kstatus, spec: dict[str, Any], seen: Observed, expected: dict[str, str]) -> None:
    status = summary(seen, **spec)
    ready, rest = expected["conditions"].split(" ", 1)
    assert notation(status) == f"Accepted=True/Valid ParallelismVerified=Unknown/NotReported Planned=True/Settled {ready} {rest}"
    assert kstatus(document(status)) == expected["kstatus"]
    said = messages(status)
    assert expected.get("told", "") in f"{said['Ready']} | {said['Reconciling']} | {said['Stalled']}"


@pytest.mark.parametrize(("spec", "seen", "expected"), SITUATIONS)
def test_nothing_changes_at_rest(spec: dict[str, Any], seen: Observed, expected: dict[str, str]) -> None:
    first = summary(seen, **spec)
    stored = Status.model_validate(document(first)["status"], by_alias=True, by_name=False)
    assert summary(seen, previous=stored, now=T2, **spec) == first == stored


def test_every_reason_is_in_a_situation() -> None:
    told = " ".join(case.values[2]["conditions"] for case in SITUATIONS)
    of_weights = {weights.FETCHING, *weights.FAILURES}  # test_weights_status.py
    assert {reason for reason in ORDER if reason not in told} == of_weights


def test_the_whole_status_is_told() -> None:
    kept = (Revision(name=REVISION, config_map=f"llama-{REVISION}"), Revision(name="0ld", config_map="llama-0ld"))
    status = summary(Observed(a_deployment(), tuple(pods(3)), kept, ()), endpoint={"port": 8000})
    found = document(status)["status"]
    conditions = found.pop("conditions")
    assert found == {
        "observedGeneration": 7,
        "replicas": 3,
        "readyReplicas": 3,
        "selector": "largemodel.dev/deployment=llama",
        "url": "http://llama.prod.svc:8000",
        "revision": {
            "current": REVISION,
            "updated": REVISION,
            "history": [{"name": REVISION, "configMap": f"llama-{REVISION}"}, {"name": "0ld", "configMap": "llama-0ld"}],
        },
        "plan": {
            "strategy": "DeepSpeed",
            "tensor": 4,
            "pipeline": 1,
            "data": 1,
            "gpusPerReplica": 4,
            "reason": "Auto: the tensor degree is 4, and DeepSpeed cuts every layer over 4 ranks of one node",
        },
        "startup": {"limitSeconds": 1800, "sum": "1800 s, as the size of the weights is not known before they are loaded"},
    }
    assert [entry["message"] for entry in conditions] == [
        "The spec is valid.",
        verification.UNREACHED.message,
        "4 ranks on 4 GPUs a replica. Auto: the tensor degree is 4, and DeepSpeed cuts every layer over 4 ranks of one node. "
        "Whether it fits in memory is not known yet.",
        "All 3 replicas answer.",
        "Everything is as the spec asks.",
        "Nothing is stuck.",
    ]
    assert {entry["observedGeneration"] for entry in conditions} == {7}
    assert {entry["lastTransitionTime"] for entry in conditions} == {T1}


def test_the_time_moves_only_where_the_status_flips() -> None:
    loading = summary(observed(pods(3, "loading"), ready=0))
    crashed = summary(observed(pods(3, "crashing"), ready=0), previous=loading, now=T2)
    assert {condition.last_transition_time for condition in crashed.conditions} == {T1}
    ready = summary(observed(pods(3)), previous=crashed, now=T3)
    assert {condition.type for condition in ready.conditions if condition.last_transition_time == T3} == {"Ready", "Reconciling"}


def test_an_evicted_pod_is_no_replica() -> None:
    status = summary(observed([*pods(3), a_pod("evicted", **PODS["ended"])]))
    assert (status.replicas, status.ready_replicas) == (3, 3)


@pytest.mark.parametrize(
    ("phase", "is_ended"), [("Pending", False), ("Running", False), ("Failed", True), ("Succeeded", True), (None, False)]
)
def test_a_pod_has_ended_by_its_phase(phase: str | None, is_ended: bool) -> None:
    assert pod_state({"metadata": {"name": "a"}, "status": {"phase": phase, "reason": "Evicted"}}).is_ended is is_ended


def test_of_a_log_s_tail_the_last_line_of_a_fault_is_told() -> None:
    tail = "09:00 INFO starting\n09:01 ERROR no space left\n09:02 INFO rank=0 Model loaded: model=m"
    said = messages(summary(observed([a_pod("a", **PODS["crashing"], last_message=tail)])))["Ready"]
    assert "its last words: 09:01 ERROR no space left" in said
    said = messages(summary(observed([a_pod("a", **PODS["crashing"], last_message=tail.splitlines()[0])])))["Ready"]
    assert "starting" not in said
    assert "--previous" in said


def test_the_order_of_pods_changes_nothing() -> None:
    dead = [a_pod(name, **PODS["crashing"], last_message=f"{name} died") for name in ("y", "x")]
    found = [*pods(2, "loading"), *dead]
    one, other = summary(observed(found)), summary(observed(found[::-1]))
    assert one == other
    assert "2 of 4 replicas" in messages(one)["Ready"]
    assert "x died" in messages(one)["Ready"]


@pytest.mark.parametrize(
    ("ready", "previous", "current"),
    [
        pytest.param([], "", "", id="nothing ever ran"),
        pytest.param([], "0ld", "0ld", id="nothing answers now"),
        pytest.param([NEW, NEW], "", NEW, id="all run the newest"),
        pytest.param([NEW, NEW], "0ld", NEW, id="the roll-out is over"),
        pytest.param([OLD, NEW], "0ld", "0ld", id="the roll-out goes on"),
        pytest.param([OLD, NEW], "", "0ld", id="the roll-out goes on and the status was lost"),
        pytest.param([OLD, OLD], NEW, "0ld", id="it went back"),
    ],
)
def test_the_current_revision_is_the_one_that_answers(ready: list[str], previous: str, current: str) -> None:
    found = tuple(a_pod(f"pod-{index}", revision=revision) for index, revision in enumerate(ready))
    before = Status.model_validate({"revision": {"current": REVISION if previous == NEW else previous}})
    status = summary(observed(found), previous=before)
    assert status.revision.current == (REVISION if current == NEW else current)
    assert status.revision.updated == REVISION


NO_DEGREE = Problem("spec.parallelism.tensor", "is 0: it must be at least 1")
LATER = Problem("spec.autoscaling", "is not available in this version: remove it and set spec.replicas")


@pytest.mark.parametrize(
    ("problems", "reason"),
    [
        pytest.param([], "InvalidSpec", id="no problem is named"),
        pytest.param([Problem("spec.replicas", "is -1")], "InvalidSpec", id="a shape"),
        pytest.param([Problem("", "it is no object")], "InvalidSpec", id="no path"),
        pytest.param([NO_DEGREE], "IllegalDegree", id="a degree"),
        pytest.param([Problem("spec.parallelism.strategy", "is 'Foo'")], "InvalidSpec", id="a strategy nobody knows"),
        pytest.param([LATER], "NotAvailable", id="a feature of later"),
        pytest.param([LATER, NO_DEGREE], "IllegalDegree", id="the graver one is told"),
        pytest.param([NO_DEGREE, Problem("spec.replicas", "is -1"), LATER], "InvalidSpec", id="the gravest one is told"),
    ],
)
def test_a_refused_spec_fails_with_the_reason(kstatus: Kstatus, problems: list[Problem], reason: str) -> None:
    status = refused(8, problems, NOTHING, T1)
    assert notation(status) == (
        f"Accepted=False/{reason} ParallelismVerified=Unknown/NotReported Planned=False/NotAccepted "
        f"Ready=False/NotAccepted Reconciling=False/Stalled Stalled=True/{reason}"
    )
    assert kstatus(document(status, 8)) == "Failed"
    assert all(str(problem) in messages(status)["Accepted"] for problem in problems)
    assert refused(8, problems, status, T2) == status


def test_what_is_not_built_is_not_available() -> None:
    """The reason is read from the words of a refusal, so every row of the table of what is not built must have them."""
    rows = availability._NOT_BUILT
    reasons = {path: reason_of([Problem(path, message)]) for path, _, message in rows}
    assert set(reasons.values()) == {"NotAvailable"}
    over_nodes = Problem("spec.parallelism.strategy", "plans Tensor tensor 16 over 2 nodes, which is not available in this version: wait")
    assert reason_of([over_nodes]) == "UnsupportedStrategy"


def test_a_refused_change_leaves_what_runs_as_it_is(kstatus: Kstatus) -> None:
    before = summary(observed(pods(3)))
    status = refused(8, [NO_DEGREE], before, T2, pods=pods(3))
    assert notation(status) == (
        "Accepted=False/IllegalDegree ParallelismVerified=Unknown/NotReported Planned=True/Settled "
        "Ready=True/ReplicasReady Reconciling=False/Stalled Stalled=True/IllegalDegree"
    )
    assert {name: entry.observed_generation for name, entry in by_type(status).items()} == {
        "Accepted": 8, "ParallelismVerified": 7, "Planned": 7, "Ready": 7, "Reconciling": 8, "Stalled": 8,
    }  # fmt: skip
    assert (status.plan, status.url, status.revision) == (before.plan, before.url, before.revision)
    assert kstatus(document(status, 8)) == "Failed"
    assert refused(8, [NO_DEGREE], status, T3, pods=pods(3)) == status


@pytest.mark.parametrize(
    ("found", "ready"),
    [
        pytest.param(None, "True/ReplicasReady", id="nobody looked at the pods"),
        pytest.param(pods(3), "True/ReplicasReady", id="all answer"),
        pytest.param([*pods(2), a_pod("z", **PODS["crashing"])], "False/CrashLooping", id="one crashes"),
        pytest.param([], "False/PodsPending", id="none is left"),
    ],
)
def test_ready_stays_true_to_the_pods_of_the_last_accepted_spec(found: list[PodState] | None, ready: str) -> None:
    status = refused(8, [NO_DEGREE], summary(observed(pods(3))), T2, pods=found)
    condition = by_type(status)["Ready"]
    assert f"{condition.status}/{condition.reason}" == ready
    assert condition.observed_generation == 7
    again = refused(8, [NO_DEGREE], status, T3, pods=pods(3))
    assert (by_type(again)["Ready"].status, again.ready_replicas) == ("True", 3)


def test_a_second_refusal_speaks_of_the_second_spec_when_none_was_accepted() -> None:
    status = refused(9, [NO_DEGREE], refused(8, [NO_DEGREE], NOTHING, T1), T2, pods=[])
    assert {condition.observed_generation for condition in status.conditions} == {status.observed_generation} == {9}
    assert {condition.last_transition_time for condition in status.conditions} == {T1}


def test_a_suspended_service_stays_suspended_when_a_change_is_refused() -> None:
    before = summary(observed(replicas=0, ready=0, updated=0), suspend=True)
    assert by_type(refused(8, [NO_DEGREE], before, T2, pods=[]))["Ready"].reason == "Suspended"


def test_the_good_spec_again_gives_the_status_again() -> None:
    """Recovery from a misoperation: nothing of the refusal is left, except that time has moved on."""
    before = summary(observed(pods(3)))
    bad = refused(8, [NO_DEGREE], before, T2, pods=pods(3))
    after = summary(observed(pods(3)), previous=bad, now=T3, generation=9)
    assert notation(after) == notation(before)
    assert messages(after) == messages(before)
    assert {name for name, entry in by_type(after).items() if entry.last_transition_time == T3} == {"Accepted", "Stalled"}


def test_many_long_problems_make_a_message_that_fits() -> None:
    problems = [Problem(f"spec.template.env[{index}].name", "x" * 3000) for index in range(30)]
    assert len(messages(refused(8, problems, NOTHING, T1))["Stalled"]) <= 4000
    short = [Problem(f"spec.template.env[{index}].name", "is twice") for index in range(30)]
    assert messages(refused(8, short, NOTHING, T1))["Accepted"].endswith("; and 10 more")
