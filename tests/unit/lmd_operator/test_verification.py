"""ParallelismVerified: what a report says of a plan, and what is said of the replicas of a revision."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmd_operator.api.parse import parse
from lmd_operator.api.status import Condition, Status
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.observed import DeploymentState, PodState, Verdict
from lmd_operator.planning.plan import Plan
from lmd_operator.resources.desired import desired
from lmd_operator.settings import Settings
from lmd_operator.status import Observed, refused, summarize
from lmd_operator.status.sentence import sentence
from lmd_operator.status.verification import MOST_RANKS, NOT_YET, UNREACHED, compared, unusable

ON_GPUS = Plan("DeepSpeed", 3, 3, 1, "asked for")
ON_CPUS = dataclasses.replace(ON_GPUS, gpus_per_replica=0)
ALONE = Plan("None", 1, 1, 1, "asked for")


def a_rank(number: int, **changes: Any) -> dict[str, Any]:
    told = {"rank": number, "world_size": 3, "strategy": "DeepSpeed", "degree": 3, "device_id": f"GPU-{number}"}
    return {**told, "parameter_bytes": 45_200_000, "model_bytes": 134_500_000, "allowed_bytes": 50_000_000, "pid": 7, **changes}


def a_report(**of_the_second: Any) -> dict[str, Any]:
    return {"ranks": [a_rank(0), a_rank(1, **of_the_second), a_rank(2)]}


ON_ONE_HOST = {"ranks": [a_rank(number, device_id="cpu of host") for number in range(3)]}
NONE_IS_CUT = {"ranks": [a_rank(number, parameter_bytes=134_500_001, allowed_bytes=0) for number in range(3)]}
ONE_RANK = {"ranks": [a_rank(0, world_size=1, strategy="None", degree=1, parameter_bytes=134_500_000, allowed_bytes=1)]}


@pytest.mark.parametrize(
    ("plan", "report", "expected"),
    [
        pytest.param(
            ON_GPUS,
            a_report(),
            "True/AsPlanned All 3 ranks run what is planned: DeepSpeed at degree 3, 45.2 MB of parameters each of 134.5 MB, "
            "each on a GPU of its own.",
            id="as planned",
        ),
        pytest.param(
            ON_CPUS,
            {"ranks": [*ON_ONE_HOST["ranks"][:2], a_rank(2, parameter_bytes=44_000_000, device_id="cpu of host")]},
            "True/AsPlanned All 3 ranks run what is planned: DeepSpeed at degree 3, 44.0 MB to 45.2 MB of parameters each of 134.5 MB.",
            id="ranks on CPUs share a host, and are cut unevenly",
        ),
        pytest.param(
            ALONE,
            ONE_RANK,
            "True/AsPlanned Its only rank runs what is planned: None, with 134.5 MB of parameters of 134.5 MB in its process.",
            id="one rank holds it all",
        ),
        pytest.param(ON_GPUS, a_report(world_size=2), "False/DegreeMismatch rank 1 runs DeepSpeed at degree 3 on 2 ranks", id="world size"),
        pytest.param(ON_GPUS, a_report(degree=2), "False/DegreeMismatch rank 1 runs DeepSpeed at degree 2 on 3 ranks, but", id="degree"),
        pytest.param(
            ON_GPUS, a_report(pipeline=3), "False/DegreeMismatch rank 1 runs DeepSpeed at degree 3 in 3 stages on 3 ranks, but", id="stages"
        ),
        pytest.param(
            Plan("ZeroInference", 1, 3, 1, "asked for", data=3),
            {"ranks": [a_rank(number, strategy="ZeroInference") for number in range(3)]},
            "True/AsPlanned All 3 ranks run what is planned: ZeroInference at degree 3, 45.2 MB of parameters each of 134.5 MB",
            id="ranks that share parameters",
        ),
        pytest.param(ON_GPUS, a_report(strategy="Tensor"), "False/DegreeMismatch but DeepSpeed at degree 3 on 3 ranks is", id="strategy"),
        pytest.param(
            ON_GPUS, ONE_RANK, "False/DegreeMismatch rank 0 runs None at degree 1 on 1 rank, but", id="one rank in place of three"
        ),
        pytest.param(
            ON_GPUS,
            {"ranks": [a_rank(0), a_rank(2)]},
            "False/RankMissing rank 1 does not report; 2 of 3 planned ranks do",
            id="a rank is missing",
        ),
        pytest.param(ON_GPUS, a_report(device_id="GPU-0"), "False/SharedDevice ranks 0 and 1 both run on GPU-0", id="a shared device"),
        pytest.param(ON_GPUS, ON_ONE_HOST, "False/SharedDevice ranks 0 and 1 both run on cpu of host", id="no GPUs at all"),
        pytest.param(
            ON_GPUS,
            a_report(parameter_bytes=50_000_001),
            "False/NotSharded rank 1 holds 50.0 MB of parameters of a model of 134.5 MB, more than its share of 50.0 MB",
            id="more than its share",
        ),
        pytest.param(
            ON_GPUS, NONE_IS_CUT, "False/NotSharded rank 0 holds 134.5 MB of parameters of a model of 134.5 MB. To", id="no share"
        ),
    ],
)
def test_a_report_is_compared_with_the_plan(plan: Plan, report: object, expected: str) -> None:
    verdict = compared(plan, report)
    kind, words = expected.split(" ", 1)
    assert f"{verdict.status}/{verdict.reason}" == kind
    assert words in verdict.message
    assert verdict.message.endswith(".")


def _without(field: str) -> dict[str, Any]:
    report = copy.deepcopy(a_report())
    del report["ranks"][1][field]
    return report


@pytest.mark.parametrize(
    "report",
    [
        None,
        [],
        "ranks",
        {},
        {"ranks": None},
        {"ranks": []},
        {"ranks": {"0": a_rank(0)}},
        {"ranks": [7]},
        {"ranks": [a_rank(0)] * (MOST_RANKS + 1)},
        a_report(rank=-1),
        a_report(rank=True),
        a_report(world_size="3"),
        a_report(parameter_bytes=2**60),
        a_report(model_bytes=1.5),
        a_report(strategy=None),
        a_report(allowed_bytes="many"),
        *(_without(field) for field in ("rank", "world_size", "degree", "strategy", "device_id", "parameter_bytes", "model_bytes")),
    ],
    ids=lambda report: str(report)[:60],
)
def test_anything_else_is_no_report(report: object) -> None:
    assert compared(ON_GPUS, report) == unusable("what answers there is no report of ranks")


def test_what_a_pod_says_is_cut_and_can_be_written() -> None:
    message = compared(ON_GPUS, a_report(strategy="\ud800\n\0" + "x" * 10_000)).message
    assert len(message) < 500
    assert "rank 1 runs ???xx" in message


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
RANKS = st.fixed_dictionaries({name: VALUES | st.just(value) for name, value in a_rank(0).items()})
DOCUMENTS = st.fixed_dictionaries({"ranks": st.lists(RANKS | VALUES, max_size=4) | VALUES}) | VALUES | st.lists(VALUES, max_size=3)


@given(DOCUMENTS)
def test_no_answer_is_too_much(document: object) -> None:
    assert compared(ON_GPUS, document).message.encode()


# ---- what is said of the replicas

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def an_owner(generation: int = 7, **spec: Any) -> LargeModelDeployment:
    content = {"model": {"source": {"path": {"path": "/models/m"}}}, "parallelism": {"tensor": 3}, "replicas": 2, **spec}
    metadata = {"name": "m", "namespace": "n", "uid": "u", "generation": generation}
    return parse({"apiVersion": "largemodel.dev/v1alpha1", "kind": "LargeModelDeployment", "metadata": metadata, "spec": content})


OWNER = an_owner()
BUILT = desired(OWNER, Settings())
RIGHT = Verdict("True", "AsPlanned", "All 3 ranks run what is planned.")
WRONG = Verdict("False", "DegreeMismatch", "A replica runs something else than planned.")
JUNK = unusable("the answer is no JSON")
WORDS = "NotSharded: Rank 1: it holds 9 bytes of 9, more than its share. Use strategy None, or another model."


def a_pod(name: str, **changes: Any) -> PodState:
    pod = PodState(name, BUILT.revision, False, False, True, True, "", True, True, 0, "", "", "", 0, "", address="10.0.0.1")
    return dataclasses.replace(pod, **changes)


LOADED = {"is_ready": False}
LOADING = {"is_ready": False, "has_started": False}
ENDED = {**LOADING, "is_running": False, "waiting": "CrashLoopBackOff", "last_reason": "Error", "last_exit_code": 70, "last_message": WORDS}


def seen(pods: Mapping[str, Mapping[str, Any]], verdicts: Mapping[str, Verdict | None]) -> Observed:
    state = DeploymentState(4, 4, len(pods), len(pods), len(pods), len(pods), is_stuck=False, failure="")
    return Observed(state, tuple(a_pod(name, **changes) for name, changes in pods.items()), (), (), verdicts=verdicts)


def before(verdict: Verdict, revision: str = BUILT.revision) -> Status:
    said = Condition(
        type="ParallelismVerified", status=verdict.status, reason=verdict.reason, message=verdict.message, last_transition_time=NOW
    )
    return Status.model_validate({"revision": {"updated": revision}, "conditions": [said]})


def said_of(observed: Observed, previous: Status, owner: LargeModelDeployment = OWNER) -> Verdict:
    built = BUILT if owner is OWNER else desired(owner, Settings())
    status = summarize(owner, built, observed, previous, LATER)
    (condition,) = [each for each in status.conditions if each.type == "ParallelismVerified"]
    return Verdict(condition.status, condition.reason, condition.message)


@pytest.mark.parametrize(
    ("pods", "verdicts", "previous", "expected"),
    [
        pytest.param({}, {}, None, NOT_YET, id="nothing runs"),
        pytest.param({"a": LOADING}, {}, None, NOT_YET, id="it loads"),
        pytest.param({"a": LOADED}, {"a": RIGHT}, None, NOT_YET, id="as planned, and not ready yet: told together with Ready"),
        pytest.param({"a": LOADED}, {"a": WRONG}, None, WRONG, id="not as planned, and not ready yet"),
        pytest.param({"a": {}}, {"a": None}, None, UNREACHED, id="ready, and asked"),
        pytest.param({"a": {}}, {}, None, UNREACHED, id="ready, and asked in vain"),
        pytest.param({"a": {}}, {"a": JUNK}, None, JUNK, id="ready, and answers junk"),
        pytest.param({"a": {}}, {"a": RIGHT}, None, RIGHT, id="ready, and as planned"),
        pytest.param({"a": {}, "b": {}}, {"a": None, "b": RIGHT}, None, RIGHT, id="one told, the other is asked"),
        pytest.param({"a": {}, "b": {}}, {"a": RIGHT, "b": WRONG}, None, WRONG, id="one of two differs"),
        pytest.param({"a": {}, "b": {"is_going": True}}, {"a": RIGHT, "b": WRONG}, None, RIGHT, id="the one that differs is ending"),
        pytest.param({"a": {"revision": "0ld"}}, {"a": RIGHT}, None, NOT_YET, id="of another revision"),
        pytest.param({"a": {}}, {"a": None}, RIGHT, RIGHT, id="after a restart: as planned"),
        pytest.param({"a": {}}, {"a": None}, WRONG, WRONG, id="after a restart: not as planned"),
        pytest.param({"a": {}}, {"a": RIGHT}, WRONG, RIGHT, id="it was put right"),
        pytest.param({"a": {}}, {"a": WRONG}, RIGHT, WRONG, id="a container that started again differs"),
        pytest.param({"a": {}}, {}, WRONG, UNREACHED, id="what differed is gone, and nobody is reached any more"),
        pytest.param({"a": {}}, {}, RIGHT, RIGHT, id="it was as planned, and nobody is reached any more"),
        pytest.param({}, {}, RIGHT, RIGHT, id="it was as planned, and is suspended"),
        pytest.param({"a": {}}, {"a": JUNK}, RIGHT, RIGHT, id="it was as planned, and another container answers junk"),
    ],
)
def test_what_is_said_of_the_replicas(
    pods: Mapping[str, Mapping[str, Any]], verdicts: Mapping[str, Verdict | None], previous: Verdict | None, expected: Verdict
) -> None:
    observed = seen(pods, verdicts)
    status = before(previous) if previous else Status()
    assert said_of(observed, status) == expected
    assert said_of(observed, before(expected)) == expected or expected in (WRONG, RIGHT), "at rest nothing changes"


def test_another_revision_is_asked_anew() -> None:
    assert said_of(seen({"a": {"revision": "0ld"}}, {}), before(RIGHT, "0ld")) == NOT_YET


@pytest.mark.parametrize(
    ("changes", "is_told"),
    [
        pytest.param({}, True, id="waits before it starts again"),
        pytest.param({"is_running": True, "waiting": ""}, True, id="loads again"),
        pytest.param({"is_running": True, "has_started": True, "waiting": ""}, False, id="has loaded"),
        pytest.param({"revision": "0ld"}, False, id="of another revision"),
        pytest.param({"last_message": "Rank 1: it ended. NotSharded: no"}, False, id="no reason in front"),
        pytest.param({"last_message": "a log\n2026-01-01 ERROR it failed"}, False, id="a log in place of last words"),
    ],
)
def test_last_words_with_a_reason_make_it_false(changes: dict[str, Any], is_told: bool) -> None:
    verdict = said_of(seen({"a": {}, "b": {**ENDED, **changes}}, {"a": RIGHT}), Status())
    told = "A replica ended before it was ready. Rank 1: it holds 9 bytes of 9, more than its share. Use strategy None, or another model."
    assert verdict == (Verdict("False", "NotSharded", told) if is_told else RIGHT)


def test_ready_tells_the_last_words_without_the_reason() -> None:
    status = summarize(OWNER, BUILT, seen({"a": ENDED, "b": ENDED}, {}), Status(), NOW)
    ready = next(each for each in status.conditions if each.type == "Ready")
    assert (ready.status, ready.reason) == ("False", "CrashLooping")
    assert "its last words: Rank 1: it holds 9 bytes" in ready.message


def test_a_handler_of_ones_own_reports_nothing() -> None:
    owner = an_owner(handler={"module": "mine"})
    verdict = said_of(seen({"a": {"revision": desired(owner, Settings()).revision}}, {}), Status(), owner)
    assert (verdict.status, verdict.reason) == ("Unknown", "NotReported")
    assert "a handler of your own" in verdict.message


def test_a_refused_change_leaves_it_as_it_was() -> None:
    status = summarize(OWNER, BUILT, seen({"a": {}, "b": {}}, {"a": RIGHT}), Status(), NOW)
    kept = next(each for each in refused(8, [], status, LATER).conditions if each.type == "ParallelismVerified")
    assert kept == next(each for each in status.conditions if each.type == "ParallelismVerified")
    assert kept.status == "True"


def test_a_service_that_answers_and_differs_says_so_in_its_sentence() -> None:
    status = summarize(OWNER, BUILT, seen({"a": {}, "b": {}}, {"a": WRONG}), Status(), NOW)
    assert sentence("m", status, 7) == (
        "m is Ready, but does not run what was planned (DegreeMismatch): A replica runs something else than planned."
    )
