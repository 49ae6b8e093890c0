"""Ranks that are not what was planned, under the real launcher: none is ever ready, and the last words name the fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.model

Start = Callable[..., tuple[int, str, list[str]]]
CAUSE = "What the missing rank wrote before is the cause, or its process hangs."


@pytest.fixture
def start(tiny_llama: Path, write_scenario: Callable[..., Path], tmp_path: Path, end_of_ranks: Callable[..., int]) -> Start:
    """Start two ranks of a plan; return the launcher's status, the last words, and which ranks became ready."""

    def run(fault: str, degree: int = 2) -> tuple[int, str, list[str]]:
        scenario = write_scenario(tiny_llama, degree, fault=fault)
        words, run_directory = tmp_path / "last-words", tmp_path / "run"
        status = end_of_ranks("handler", scenario, tmp_path, 2, LMD_TERMINATION_MESSAGE_PATH=str(words), LMD_RUN_DIR=str(run_directory))
        return status, words.read_text() if words.exists() else "", sorted(path.name for path in tmp_path.glob("ready-*"))

    return run


@pytest.mark.parametrize(
    ("fault", "degree", "told"),
    [
        pytest.param(
            "none", 3, "DegreeMismatch: Rank {rank}: the launcher started 2 ranks, but the tensor-parallel degree is 3. ", id="degree"
        ),
        pytest.param("two ranks on one device", 2, "SharedDevice: Rank 1: it runs on GPU-0, as rank 0 does. ", id="device"),
        pytest.param(
            "a rank that never comes", 2, "RankMissing: Rank 0: rank 1 of 2 ranks did not come within 2 s. " + CAUSE, id="missing"
        ),
        pytest.param("a model that is not cut", 2, "NotSharded: Rank 0: it holds ", id="not cut"),
    ],
)
def test_ranks_that_differ_end_and_say_how(start: Start, fault: str, degree: int, told: str) -> None:
    status, words, ready = start(fault, degree)
    assert status != 0
    assert words.startswith((told.format(rank=0), told.format(rank=1))), words
    assert ready == []


def test_ranks_as_planned_become_ready(start: Start, tmp_path: Path) -> None:
    """What the tests above break is right without the fault."""
    _, _, ready = start("none")
    assert "ready-0" in ready
    assert (tmp_path / "run" / "ranks.json").exists()
