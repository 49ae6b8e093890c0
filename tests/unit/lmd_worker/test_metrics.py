"""Lines for TorchServe's metrics endpoint: growth only, rank 0's alone, in the format the frontend parses."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmd_worker import metrics
from lmd_worker.engine.protocol import EngineStats, RequestTiming
from lmd_worker.metrics import Exporter

PATTERN = re.compile(r"\[METRICS\]\s*([\w\s]+)\.([\w\s]+):([0-9\-,.e]+)\|#([^|]*)\|#type:([^|,]+)\|#hostname:([^,]+),([^,]+)")
"""org.pytorch.serve.metrics.Metric's own (torchserve 0.12.0), behind the mark that the frontend takes off."""


class Bench:
    """An engine that reports what it is told to, and what was printed of it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.now_stats = EngineStats()
        self.timings: list[RequestTiming] = []
        self.refused: Mapping[int, int] = {}
        self.printed: list[str] = []
        self.exporter = Exporter("chat", self, lambda: self.refused, self.printed.extend, lambda: self.now)  # type: ignore[arg-type]

    def stats(self) -> EngineStats:
        return self.now_stats

    def drain_timings(self) -> Sequence[RequestTiming]:
        taken, self.timings = self.timings, []
        return taken

    def published(self, seconds: float = 1.0) -> dict[tuple[str, str], list[float]]:
        """Values by name and labels of what one more publish prints."""
        self.now += seconds
        self.printed.clear()
        self.exporter.publish()
        found: dict[tuple[str, str], list[float]] = {}
        for line in self.printed:
            match = PATTERN.fullmatch(line)
            assert match, line
            found.setdefault((match[1], match[4]), []).append(float(match[3]))
        return found


MODEL = "ModelName:chat,Level:Model"


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_first_time_every_engine_metric_is_there_and_then_only_what_changed(bench: Bench) -> None:
    first = bench.published()
    assert {name for name, _ in first} == {
        metric.name for metric in metrics.METRICS if metric.kind != "histogram" and metric not in (metrics.CACHE_USE, metrics.REFUSED)
    }
    assert {value for values in first.values() for value in values} == {0.0}
    assert bench.published() == {}


def test_counters_print_their_growth_and_gauges_their_value(bench: Bench) -> None:
    bench.now_stats = EngineStats(2, 1, 100, 10, 5, 0.5, 3, 12)
    bench.published()
    bench.now_stats = EngineStats(1, 0, 100, 14, 9, 0.75, 6, 12)
    assert bench.published() == {
        ("lmd_num_requests_running", MODEL): [1],
        ("lmd_num_requests_waiting", MODEL): [0],
        ("lmd_kv_cache_usage_perc", MODEL): [0.5],
        ("lmd_generation_tokens_total", MODEL): [4],
        ("lmd_engine_turns_total", MODEL): [4],
        ("lmd_engine_turn_seconds_total", MODEL): [0.25],
    }


def test_refusals_are_counted_by_status(bench: Bench) -> None:
    bench.published()
    bench.refused = {400: 3, 429: 1}
    assert bench.published() == {
        ("lmd_requests_refused_total", f"Status:400,{MODEL}"): [3],
        ("lmd_requests_refused_total", f"Status:429,{MODEL}"): [1],
    }
    bench.refused = {400: 5, 429: 1}
    assert bench.published() == {("lmd_requests_refused_total", f"Status:400,{MODEL}"): [2]}


def test_every_ended_request_is_observed_once(bench: Bench) -> None:
    bench.published()
    bench.timings = [RequestTiming(0.25, 0.5, (0.1, 0.3)), RequestTiming(2.0, None, ())]
    assert bench.published() == {
        ("lmd_request_queue_time_seconds", MODEL): [0.25, 2.0],
        ("lmd_time_to_first_token_seconds", MODEL): [0.5],
        ("lmd_request_time_per_output_token_seconds", MODEL): [0.2],
        ("lmd_request_max_inter_token_seconds", MODEL): [0.3],
    }
    assert bench.published() == {}


def test_nothing_is_printed_more_often_than_once_a_second(bench: Bench) -> None:
    bench.published()
    bench.now_stats = EngineStats(running=1)
    assert bench.published(seconds=0.5) == {}
    assert bench.published(seconds=0.5) == {("lmd_num_requests_running", MODEL): [1]}


def test_what_is_printed_is_declared_to_the_frontend(tmp_path: Path) -> None:
    found = importlib.util.find_spec("ts")
    assert found is not None
    assert found.submodule_search_locations
    torchserve = Path(found.submodule_search_locations[0])
    metrics.write_config(torchserve, tmp_path)
    written: dict[str, Any] = yaml.safe_load((tmp_path / metrics.FILE_NAME).read_text())
    assert written["ts_metrics"] == yaml.safe_load((torchserve / "configs" / "metrics.yaml").read_text())["ts_metrics"]
    declared = {entry["name"]: (kind, entry["dimensions"]) for kind, entries in written["model_metrics"].items() for entry in entries}
    assert declared == {metric.name: (metric.kind, [*metric.labels, "ModelName", "Level"]) for metric in metrics.METRICS}


def test_long_output_is_written_in_pieces_a_pipe_takes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[bytes] = []
    monkeypatch.setattr(metrics.os, "write", lambda _, data: pieces.append(data))
    lines = [f"{index}:" + "x" * 150 for index in range(100)]
    metrics.print_lines(lines)
    assert b"".join(pieces).decode().splitlines() == lines
    assert max(map(len, pieces)) <= metrics.LINE_BYTES
    assert all(piece.endswith(b"\n") for piece in pieces)


def test_the_documentation_and_the_dashboard_know_every_metric() -> None:
    root = Path(__file__).parents[3]
    page = (root / "docs" / "metrics.md").read_text()
    for metric in metrics.METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        assert f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning} |" in page
    dashboard = (root / "charts" / "lmd-operator" / "files" / "dashboard-serving.json").read_text()
    series = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\blmd_\w+", dashboard)}
    assert series == {metric.name for metric in metrics.METRICS}
