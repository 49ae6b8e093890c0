"""How long loading may take: a sum that anybody can follow, neither early for a slow volume nor late for a small model."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmd_operator.api.parse import parse
from lmd_operator.api.status import Status
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.observed import PodState, Verdict
from lmd_operator.planning.startup import LONGEST_SECONDS, PROCESSES_SECONDS, UNKNOWN, StartUp, start_up
from lmd_operator.resources.desired import desired, document
from lmd_operator.settings import Settings
from lmd_operator.status import Observed, summarize

MIB = 2**20
GIB = 2**30
NOW = "2026-01-01T00:00:00Z"
BYTES = st.integers(0, 10**14)


def an_owner(asked: int | None) -> LargeModelDeployment:
    return parse(
        {
            "apiVersion": "largemodel.dev/v1alpha1",
            "kind": "LargeModelDeployment",
            "metadata": {"name": "m", "namespace": "n", "uid": "u", "generation": 1},
            "spec": {
                "model": {"source": {"path": {"path": "/m"}}},
                "parallelism": {"tensor": 2},
                "replicas": 2,
                "engine": {"torchServe": {"startupTimeoutSeconds": asked}},
            },
        }
    )


@pytest.mark.parametrize(
    ("asked", "weight_bytes", "expected"),
    [
        pytest.param(90, None, StartUp(90, "90 s, as asked for"), id="asked for"),
        pytest.param(90, 500 * GIB, StartUp(90, "90 s, as asked for"), id="asked for, whatever the size"),
        pytest.param(None, None, UNKNOWN, id="size not known"),
        pytest.param(
            None,
            10 * GIB,
            StartUp(703, "600 s for processes and the self-test + 103 s to read 10.0 GiB at 100 MiB/s"),
            id="10 GiB",
        ),
        pytest.param(
            None,
            500 * GIB,
            StartUp(5720, "600 s for processes and the self-test + 5120 s to read 500.0 GiB at 100 MiB/s"),
            id="500 GiB, which half an hour would have cut",
        ),
        pytest.param(
            None,
            10**14,
            StartUp(86400, "600 s for processes and the self-test + 953675 s to read 93132.3 GiB at 100 MiB/s, at most 86400 s"),
            id="more than a day",
        ),
    ],
)
def test_the_limit_is_a_sum(asked: int | None, weight_bytes: int | None, expected: StartUp) -> None:
    assert start_up(asked, weight_bytes) == expected


@given(BYTES, BYTES)
def test_more_to_read_never_has_less_time(one: int, other: int) -> None:
    less, more = sorted((one, other))
    assert PROCESSES_SECONDS <= start_up(None, less).seconds <= start_up(None, more).seconds <= LONGEST_SECONDS


@given(st.integers(0, 8 * 10**12))
def test_a_volume_of_125_mib_a_second_is_never_cut(weight_bytes: int) -> None:
    assert start_up(None, weight_bytes).seconds >= weight_bytes / (125 * MIB) + PROCESSES_SECONDS


@pytest.mark.parametrize("asked", [None, 90])
def test_one_limit_is_everywhere(asked: int | None) -> None:
    built = desired(an_owner(asked), Settings())
    deployment = next(found for found in map(document, built.resources) if found["kind"] == "Deployment")
    probe = deployment["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    seconds = asked or UNKNOWN.seconds
    assert built.plan.startup.seconds == seconds
    assert probe["periodSeconds"] * probe["failureThreshold"] == seconds
    assert f"startupTimeout: {seconds}\n" in built.files.texts["model-config.yaml"]
    assert deployment["spec"]["progressDeadlineSeconds"] > seconds


def seen(revision: str, **load_seconds: int) -> Observed:
    pods = [
        PodState(name, revision, False, False, True, True, "", True, True, 0, "", "", "", 0, "", address="10.0.0.1")
        for name in sorted(load_seconds)
    ]
    verdicts: dict[str, Verdict | None] = {
        name: Verdict("True", "AsPlanned", "As planned.", seconds) if seconds else None for name, seconds in load_seconds.items()
    }
    return dataclasses.replace(Observed(None, tuple(pods), (), ()), verdicts=verdicts)


def test_what_loading_took_is_told_beside_the_limit_and_stays_with_the_revision() -> None:
    owner = an_owner(300)
    built = desired(owner, Settings())

    def told(previous: Status, observed: Observed) -> tuple[Status, int | None]:
        status = summarize(owner, built, observed, previous, NOW)
        assert status.startup is not None
        assert (status.startup.limit_seconds, status.startup.sum) == (300, "300 s, as asked for")
        return status, status.startup.measured_seconds

    first, nothing = told(Status(), seen(built.revision, a=0, b=0))
    assert nothing is None
    second, slowest = told(first, seen(built.revision, a=17, b=41))
    assert slowest == 41
    third, kept = told(second, seen(built.revision, a=0, b=0))
    assert kept == 41, "an operator that starts again has asked nobody yet"
    of_another = third.model_copy(update={"revision": third.revision.model_copy(update={"updated": "before"})})
    assert told(of_another, seen(built.revision, a=0))[1] is None
