"""What is true of the status of whatever is observed, reachable or not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmd_operator.api.parse import parse
from lmd_operator.api.status import Condition, ConditionType, Revision, Status
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.errors import Problem
from lmd_operator.observed import DeploymentState, PodState
from lmd_operator.resources.desired import Desired, desired
from lmd_operator.settings import Settings
from lmd_operator.status import Observed, refused, summarize
from lmd_operator.status.causes import PASSING
from lmd_operator.transitions import NOTE_LIMIT_BYTES, transitions

REASON = re.compile(r"[A-Z][A-Za-z]{0,127}")
MESSAGE_LIMIT = 32768


def an_owner(replicas: int, suspend: bool, generation: int) -> LargeModelDeployment:
    spec = {"model": {"source": {"path": {"path": "/models/m"}}}, "replicas": replicas, "suspend": suspend}
    metadata = {"name": "m", "generation": generation}
    return parse({"apiVersion": "largemodel.dev/v1alpha1", "kind": "LargeModelDeployment", "metadata": metadata, "spec": spec})


OWNERS: list[tuple[LargeModelDeployment, Desired]] = [
    (owner, desired(owner, Settings()))
    for owner in (an_owner(replicas, suspend, 5) for replicas in (0, 1, 2, 3) for suspend in (False, True))
]
REVISION = OWNERS[0][1].files.revision
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.just("word " * 500)
COUNTS = st.integers(0, 4)
WAITING = ["", "ContainerCreating", "ImagePullBackOff", "InvalidImageName", "CrashLoopBackOff", "CreateContainerConfigError", "?"]
REFUSALS = ["", "exceeded quota", "violates PodSecurity", "x is forbidden", "a b belongs to c d", "is invalid", "no"]
FLAGS = st.booleans()
PODS = st.builds(
    PodState,
    name=st.sampled_from(["a", "b", "c", "d"]),
    revision=st.sampled_from([REVISION, "0ld", "older", ""]),
    is_going=FLAGS,
    is_ended=FLAGS,
    is_ready=FLAGS,
    is_scheduled=FLAGS,
    scheduling_message=st.sampled_from(["", "2 Insufficient cpu", "untolerated taint"]) | WORDS,
    has_started=FLAGS,
    is_running=FLAGS,
    restarts=COUNTS,
    waiting=st.sampled_from(WAITING),
    waiting_message=WORDS,
    last_reason=st.sampled_from(["", "Error", "OOMKilled", "Completed", "ContainerStatusUnknown"]),
    last_exit_code=st.sampled_from([0, 1, 2, 70, 71, 137, 143, 255]),
    last_message=WORDS,
)
DEPLOYMENTS = st.none() | st.builds(
    DeploymentState,
    generation=st.integers(3, 4),
    observed_generation=st.integers(3, 4),
    replicas=COUNTS,
    ready=COUNTS,
    updated=COUNTS,
    available=COUNTS,
    is_stuck=FLAGS,
    failure=st.sampled_from(REFUSALS),
)
KEPT = st.builds(Revision, name=st.sampled_from(["0ld", REVISION]), config_map=st.just("m-x"))
SEEN = st.builds(
    Observed,
    deployment=DEPLOYMENTS,
    pods=st.lists(PODS, max_size=5).map(tuple),
    revisions=st.lists(KEPT, max_size=3).map(tuple) | st.just((Revision(name="0ld", config_map="m-x"),) * 200),
    failures=st.lists(st.sampled_from(REFUSALS[1:]) | WORDS, max_size=3).map(tuple),
    awaited=st.just("") | WORDS,
)
PROBLEMS = st.lists(st.builds(Problem, path=st.sampled_from(["", "spec.replicas", "spec.parallelism.tensor"]), message=WORDS), max_size=3)
STEPS = st.lists(st.tuples(st.sampled_from(OWNERS), SEEN, st.none() | PROBLEMS), min_size=1, max_size=4)
QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
Kstatus = Callable[[Mapping[str, Any]], str]


def moment(step: int) -> str:
    return f"2026-01-01T00:00:{step:02}Z"


def told(step: tuple[tuple[LargeModelDeployment, Desired], Observed, list[Problem] | None], previous: Status, now: str) -> Status:
    (owner, built), seen, problems = step
    if problems is None:
        return summarize(owner, built, seen, previous, now)
    return refused(owner.metadata.generation, problems, previous, now, pods=seen.pods)


def by_type(status: Status) -> dict[str, Condition]:
    return {condition.type: condition for condition in status.conditions}


def as_stored(status: Status) -> dict[str, Any]:
    return status.model_dump(by_alias=True, exclude_none=True, mode="json")


@QUICK
@given(steps=STEPS)
def test_every_status_is_one_the_api_server_takes(api_server: Any, steps: list[Any]) -> None:
    status = Status()
    for index, step in enumerate(steps):
        status = told(step, status, moment(index))
        owner = step[0][0]
        document = {**owner.model_dump(by_alias=True, exclude_none=True, mode="json"), "status": as_stored(status)}
        assert api_server.shape_errors(document) == []
        assert Status.model_validate(document["status"], by_alias=True, by_name=False) == status


@QUICK
@given(steps=STEPS)
def test_all_conditions_are_there_in_order_and_say_something(steps: list[Any]) -> None:
    status = Status()
    for index, step in enumerate(steps):
        status = told(step, status, moment(index))
        assert [condition.type for condition in status.conditions] == sorted(get_args(ConditionType))
        for condition in status.conditions:
            assert REASON.fullmatch(condition.reason), condition
            assert 0 < len(condition.message) <= MESSAGE_LIMIT


@QUICK
@given(steps=STEPS)
def test_time_moves_with_the_status_of_a_condition_only(steps: list[Any]) -> None:
    status = Status()
    for index, step in enumerate(steps):
        before, status = by_type(status), told(step, status, moment(index))
        for name, condition in by_type(status).items():
            flipped = name not in before or before[name].status != condition.status
            assert condition.last_transition_time == (moment(index) if flipped else before[name].last_transition_time)


@QUICK
@given(steps=STEPS)
def test_the_same_again_is_the_same_and_makes_no_event(steps: list[Any]) -> None:
    status = Status()
    for index, step in enumerate(steps):
        status = told(step, status, moment(index))
    assert told(steps[-1], status, moment(59)) == status
    assert transitions(status, told(steps[-1], status, moment(59))) == []


@QUICK
@given(pair=st.sampled_from(OWNERS), seen=SEEN)
def test_ready_is_never_said_with_fewer_answering_pods_than_asked_for(pair: Any, seen: Observed) -> None:
    owner, built = pair
    status = summarize(owner, built, seen, Status(), moment(0))
    asked = 0 if owner.spec.suspend else owner.spec.replicas
    answering = sum(pod.is_ready and not (pod.is_going or pod.is_ended) for pod in seen.pods)
    assert status.ready_replicas == answering <= status.replicas
    assert (by_type(status)["Ready"].status == "True") == (answering >= asked)


@QUICK
@given(pair=st.sampled_from(OWNERS), seen=SEEN)
def test_kstatus_is_current_only_when_all_is_as_asked(kstatus: Kstatus, pair: Any, seen: Observed) -> None:
    owner, built = pair
    status = summarize(owner, built, seen, Status(), moment(0))
    found = by_type(status)
    verdict = kstatus({"metadata": {"generation": owner.metadata.generation}, "status": as_stored(status)})
    working, stuck = found["Reconciling"].status, found["Stalled"].status
    assert verdict == {("True", "False"): "InProgress", ("False", "True"): "Failed", ("False", "False"): "Current"}[working, stuck]
    if verdict == "Current":
        asked = 0 if owner.spec.suspend else owner.spec.replicas
        deployment = seen.deployment
        assert deployment is not None
        assert (deployment.replicas, deployment.updated if asked else 0) == (asked, asked)
        assert found["Ready"].status == "True"
        assert (seen.failures, seen.awaited) == ((), "")
    if seen.failures:
        assert verdict == "Failed"
    if verdict == "Failed" and not seen.failures:
        assert seen.deployment is not None
        assert seen.deployment.is_stuck


@QUICK
@given(owner=st.sampled_from(OWNERS), seen=SEEN, problems=PROBLEMS)
def test_a_refused_spec_is_failed_whatever_runs(kstatus: Kstatus, owner: Any, seen: Observed, problems: list[Problem]) -> None:
    status = refused(6, problems, summarize(*owner, seen, Status(), moment(0)), moment(1), pods=seen.pods)
    assert kstatus({"metadata": {"generation": 6}, "status": as_stored(status)}) == "Failed"
    assert kstatus({"metadata": {"generation": 7}, "status": as_stored(status)}) == "InProgress"
    assert by_type(status)["Accepted"].status == "False"


@QUICK
@given(pair=st.sampled_from(OWNERS), seen=SEEN, order=st.randoms())
def test_the_order_of_what_is_observed_does_not_matter(pair: Any, seen: Observed, order: Any) -> None:
    unique = list({pod.name: pod for pod in seen.pods}.values())
    shuffled = list(unique)
    order.shuffle(shuffled)
    one = Observed(seen.deployment, tuple(unique), seen.revisions, seen.failures)
    other = Observed(seen.deployment, tuple(shuffled), seen.revisions, seen.failures)
    assert summarize(*pair, one, Status(), moment(0)) == summarize(*pair, other, Status(), moment(0))


@QUICK
@given(steps=STEPS)
def test_events_are_short_and_warn_only_of_what_needs_somebody(steps: list[Any]) -> None:
    status = Status()
    for index, step in enumerate(steps):
        before, status = status, told(step, status, moment(index))
        for event in transitions(before, status, {"a": "x\n" * 2000}, {"a": "y\n" * 2000}):
            assert 0 < len(event.note.encode()) <= NOTE_LIMIT_BYTES
            assert REASON.fullmatch(event.reason)
            if event.type == "Warning":
                assert event.action != "Serve" or event.reason not in PASSING


def test_the_oracle_reads_as_kstatus_does(kstatus: Kstatus) -> None:
    ready, reconciling, stalled = ({"type": name, "status": "True"} for name in ("Ready", "Reconciling", "Stalled"))
    generation = {"generation": 2}
    table = [
        ({"metadata": {**generation, "deletionTimestamp": "x"}, "status": {"observedGeneration": 1}}, "Terminating"),
        ({"metadata": generation, "status": {"observedGeneration": 1, "conditions": [ready]}}, "InProgress"),
        ({"metadata": generation, "status": {"observedGeneration": 3, "conditions": [stalled]}}, "InProgress"),
        ({"metadata": generation, "status": {"conditions": [ready]}}, "Current"),
        ({"status": {"conditions": [reconciling, stalled]}}, "InProgress"),
        ({"status": {"conditions": [stalled, reconciling]}}, "Failed"),
        ({"status": {"conditions": [ready, stalled]}}, "Failed"),
        ({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}, "InProgress"),
        ({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, "InProgress"),
        ({"metadata": generation}, "Current"),
    ]
    for document, verdict in table:
        assert kstatus(document) == verdict, document
