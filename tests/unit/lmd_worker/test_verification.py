"""What ranks report, against what was rendered for them: the table of faults, and how each is told."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lmd_worker import lastwords, verification
from lmd_worker.errors import RankError, WorkerError
from lmd_worker.report import RankReport

PLANNED: dict[str, Any] = {"strategy": "DeepSpeed", "ranks": 3, "degree": 3}


def a_report(rank: int, **changes: Any) -> RankReport:
    """One of three ranks as planned, each on a GPU of its own."""
    report = RankReport(
        rank=rank,
        world_size=3,
        strategy="DeepSpeed",
        degree=3,
        device=f"cuda:{rank}",
        device_id=f"GPU-{rank}",
        dtype="bfloat16",
        parameter_bytes=40,
        model_bytes=100,
        heads=3,
        key_value_heads=1,
        pid=1,
        versions={},
        allowed_bytes=45,
    )
    return dataclasses.replace(report, **changes)


def reports(**of_the_second: Any) -> list[RankReport]:
    return [a_report(0), a_report(1, **of_the_second), a_report(2)]


@pytest.mark.parametrize(
    ("found", "reason", "sentence"),
    [
        pytest.param(reports(world_size=2), "DegreeMismatch", "Rank 1: it runs DeepSpeed at degree 3 on 2 ranks, but DeepSpeed", id="size"),
        pytest.param(reports(degree=2), "DegreeMismatch", "Rank 1: it runs DeepSpeed at degree 2 on 3 ranks", id="degree"),
        pytest.param(reports(pipeline=3), "DegreeMismatch", "Rank 1: it runs DeepSpeed at degree 3 in 3 stages on 3 ranks", id="stages"),
        pytest.param(reports(strategy="None"), "DegreeMismatch", "Rank 1: it runs None at degree 3", id="strategy"),
        pytest.param([a_report(0), a_report(2)], "RankMissing", "Rank 1: it does not report; 2 of 3 planned ranks do", id="a rank"),
        pytest.param([], "RankMissing", "Rank 0: it does not report; 0 of 3", id="all ranks"),
        pytest.param(reports(device_id="GPU-0"), "SharedDevice", "Rank 1: it runs on GPU-0, as rank 0 does", id="device"),
        pytest.param(
            reports(parameter_bytes=100),
            "NotSharded",
            "Rank 1: it holds 100 bytes of parameters of a model of 100, more than its share at degree 3 (45 bytes)",
            id="bytes",
        ),
    ],
)
def test_every_difference_has_its_reason(found: list[RankReport], reason: str, sentence: str) -> None:
    with pytest.raises(RankError) as raised:
        verification.check(found, **PLANNED)
    assert raised.value.reason == reason
    assert str(raised.value).startswith(sentence)


def test_ranks_as_planned_pass_in_any_order() -> None:
    verification.check(reports()[::-1], **PLANNED)


def test_ranks_on_cpus_may_share_a_host() -> None:
    verification.check_devices(["cpu of host"] * 3)
    verification.check([dataclasses.replace(report, device_id="cpu of host") for report in reports()], **PLANNED)


def test_one_rank_holds_it_all() -> None:
    alone = a_report(0, world_size=1, strategy="None", degree=1, parameter_bytes=100, allowed_bytes=90)
    verification.check([alone], strategy="None", ranks=1, degree=1)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        pytest.param(RankError("Rank 2: it is odd.", reason="SharedDevice"), "SharedDevice: Rank 2: it is odd.", id="names a rank"),
        pytest.param(WorkerError("it is odd."), "Rank 1: it is odd.", id="names none, and has no reason"),
    ],
)
def test_last_words_begin_with_the_reason(error: WorkerError, told: str) -> None:
    assert lastwords.of(1, error) == told
