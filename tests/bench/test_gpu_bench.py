"""`make bench-gpu` in small: a tiny model on the CPU, through all the ways that the real measurement takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.model, pytest.mark.long]

PROGRAM = Path(__file__).with_name("gpu_bench.py")
STREAMS = ("1", "4")
WAYS = ("engine", "torchserve", "transformers_serve", "generate")
FIGURES = ("tokens_per_second", "ttft_p50_ms", "ttft_p95_ms", "itl_p50_ms", "itl_p99_ms", "of_bound")
SECONDS = 240


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env={**os.environ, **variables}, check=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bench")
    output = folder / "figures.json"
    small = ("--device", "cpu", "--shape", "tiny", "--answer-tokens", "8", "--models", str(folder), "--output", str(output))
    done = run(*small, "--streams", *STREAMS)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(output.read_text())
    assert all(f"| {streams} | {way} |" in done.stdout for streams in STREAMS for way in (*WAYS, "bound"))
    return figures


def test_every_way_gives_every_figure(measured: dict[str, Any]) -> None:
    assert measured["device"] == "CPU"
    assert all(value > 0 for value in measured["bound"].values())
    for streams in STREAMS:
        assert measured[streams].keys() == {*WAYS, "bound"}
        assert measured[streams]["bound"]["tokens_per_second"] > 0
        for way in WAYS:
            row = measured[streams][way]
            assert all(row[name] > 0 for name in FIGURES if name != "itl_p50_ms"), (streams, way, row)
            assert row["itl_p50_ms"] >= 0, "0 where most tokens come in one piece with others, as from `transformers serve` at times"
            assert row["ttft_p50_ms"] <= row["ttft_p95_ms"]
            assert row["itl_p50_ms"] <= row["itl_p99_ms"]


def test_the_worker_behind_the_stand_in_says_what_the_engine_says(measured: dict[str, Any]) -> None:
    assert {streams: measured[streams]["torchserve"]["same_as_engine"] for streams in STREAMS} == dict.fromkeys(STREAMS, 1.0)


def test_without_a_cuda_device_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    done = run("--models", str(tmp_path), "--output", str(output), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert done.stderr.startswith("PyTorch finds no CUDA device here; ")
    assert done.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())
