"""What a worker reports is what the operator reads, and both know the same faults."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args

import pytest

from lmd_operator.observed import PodState
from lmd_operator.planning.plan import Plan
from lmd_operator.status.causes import FAULTS, fault_of, of_pod
from lmd_operator.status.verification import compared
from lmd_worker import lastwords, probes, report
from lmd_worker.errors import ParallelismReason, RankError

PLAN = Plan("DeepSpeed", 2, 2, 1, "asked for")


def reports(**of_the_second: Any) -> str:
    first = report.RankReport(0, 2, "DeepSpeed", 2, "cuda:0", "GPU-0", "bfloat16", 60, 100, 4, 2, 1, {"torch": "2"}, allowed_bytes=65)
    second = dataclasses.replace(first, **{"rank": 1, "device": "cuda:1", "device_id": "GPU-1", **of_the_second})
    return report.to_json([first, second])


def test_both_name_the_same_faults() -> None:
    assert set(get_args(ParallelismReason)) == set(FAULTS)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "AsPlanned"),
        ({"degree": 1}, "DegreeMismatch"),
        ({"rank": 0}, "RankMissing"),
        ({"device_id": "GPU-0"}, "SharedDevice"),
        ({"parameter_bytes": 100}, "NotSharded"),
    ],
)
def test_the_operator_reads_what_a_worker_writes(changes: dict[str, Any], reason: str) -> None:
    assert compared(PLAN, json.loads(reports(**changes))).reason == reason


def test_the_slowest_rank_says_how_long_loading_took() -> None:
    assert compared(PLAN, json.loads(reports(load_seconds=41))).load_seconds == 41


@pytest.mark.parametrize("reason", FAULTS)
def test_the_operator_reads_a_worker_s_last_words(reason: ParallelismReason) -> None:
    words = lastwords.of(1, RankError("it is odd. Do something.", reason=reason))
    ended = PodState("pod", "r", False, False, False, True, "", False, False, 3, "CrashLoopBackOff", "", "Error", 70, words)
    cause = fault_of(ended)
    assert cause is not None
    assert (cause.reason, cause.message) == (reason, "Rank 1: it is odd. Do something")


def test_the_operator_knows_a_worker_that_was_ended_while_it_loaded() -> None:
    words = f"{probes.NOT_LOADED}: the model was not loaded 1800 s after the start."
    ended = PodState("pod", "r", False, False, False, True, "", False, True, 1, "", "", "Error", 143, words)
    cause = of_pod(ended)
    assert cause is not None
    assert (cause.reason, cause.message) == (
        "StartupTimeout",
        "the model was not loaded 1800 s after the start, and it is started again; "
        "raise spec.engine.torchServe.startupTimeoutSeconds, or put the weights on a faster volume",
    )
