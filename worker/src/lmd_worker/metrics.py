"""What rank 0 tells of its engine and its requests on TorchServe's metrics endpoint.

TorchServe reads lines that ranks print and adds them up over all ranks, so rank 0 alone prints them, once a second, and
only what has changed. What the frontend does not find in its metrics file is dropped, so that file is written from the
table below when the frontend starts. Names are vLLM's where they mean the same, with our prefix; TorchServe allows no
colon in them. Wire format: org.pytorch.serve.metrics.Metric, `PATTERN` (torchserve 0.12.0).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lmd_worker.engine.protocol import Engine, EngineStats, RequestTiming

FILE_NAME = "metrics.yaml"
PERIOD_SECONDS = 1.0
LINE_BYTES = 4096
"""At most this much in one write: a pipe takes it whole, whatever other ranks print at the same time."""

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; every one has the labels `ModelName` and `Level`, and `Hostname`, which TorchServe adds."""

    name: str
    kind: Kind
    meaning: str
    labels: Labels = ()


RUNNING = Metric("lmd_num_requests_running", "gauge", "requests whose tokens are being made")
WAITING = Metric("lmd_num_requests_waiting", "gauge", "requests the engine has accepted and not begun")
CACHE_USE = Metric("lmd_kv_cache_usage_perc", "gauge", "share of the cache's blocks in use, from 0 to 1; absent with the Static scheduler")
PROMPT_TOKENS = Metric("lmd_prompt_tokens_total", "counter", "prompt tokens read")
GENERATION_TOKENS = Metric("lmd_generation_tokens_total", "counter", "tokens made")
TURNS = Metric("lmd_engine_turns_total", "counter", "turns of the engine that computed something")
TURN_SECONDS = Metric("lmd_engine_turn_seconds_total", "counter", "seconds spent in these turns")
REFUSED = Metric("lmd_requests_refused_total", "counter", "requests answered with an error before they ran, by HTTP status", ("Status",))
QUEUE_SECONDS = Metric("lmd_request_queue_time_seconds", "histogram", "seconds from a request's arrival until the engine took it")
FIRST_TOKEN_SECONDS = Metric("lmd_time_to_first_token_seconds", "histogram", "seconds from a request's arrival to its first token")
TOKEN_SECONDS = Metric("lmd_request_time_per_output_token_seconds", "histogram", "mean seconds between one request's tokens")
SLOWEST_TOKEN_SECONDS = Metric("lmd_request_max_inter_token_seconds", "histogram", "longest pause between two tokens of one request")

METRICS = (
    RUNNING,
    WAITING,
    CACHE_USE,
    PROMPT_TOKENS,
    GENERATION_TOKENS,
    TURNS,
    TURN_SECONDS,
    REFUSED,
    QUEUE_SECONDS,
    FIRST_TOKEN_SECONDS,
    TOKEN_SECONDS,
    SLOWEST_TOKEN_SECONDS,
)


def write_config(torchserve: Path, run_directory: Path) -> None:
    """Write the frontend's metrics file: its own metrics as `torchserve`, the directory of the package `ts`, declares them, and ours."""
    document: dict[str, Any] = yaml.safe_load((torchserve / "configs" / "metrics.yaml").read_text())
    document["model_metrics"] = declarations()
    (run_directory / FILE_NAME).write_text(yaml.safe_dump(document, sort_keys=False))


def declarations() -> dict[str, list[dict[str, Any]]]:
    """Return our metrics as TorchServe wants them declared, by kind."""
    declared: dict[str, list[dict[str, Any]]] = {}
    for metric in METRICS:
        entry = {"name": metric.name, "unit": _unit(metric), "dimensions": [*metric.labels, "ModelName", "Level"]}
        declared.setdefault(metric.kind, []).append(entry)
    return declared


def print_lines(lines: list[str]) -> None:
    """Write to standard output, whole lines at a time."""
    chunk = b""
    for line in lines:
        data = line.encode() + b"\n"
        if chunk and len(chunk) + len(data) > LINE_BYTES:
            os.write(1, chunk)
            chunk = b""
        chunk += data
    if chunk:
        os.write(1, chunk)


@dataclass
class Exporter:
    """Turns totals into lines; call `publish` as often as you like, from one thread."""

    model: str
    engine: Engine
    refusals: Callable[[], Mapping[int, int]]
    write: Callable[[list[str]], None] = print_lines
    clock: Callable[[], float] = time.monotonic
    _due: float = field(default=float("-inf"), init=False)
    _last: dict[tuple[Metric, Labels], float] = field(default_factory=dict, init=False)

    def publish(self) -> None:
        """Print what has changed, if the last time was long enough ago."""
        now = self.clock()
        if now < self._due:
            return
        self._due = now + PERIOD_SECONDS
        lines = [*self._totals(self.engine.stats()), *self._refused()]
        for timing in self.engine.drain_timings():
            lines += self._timing(timing)
        if lines:
            self.write(lines)

    def _totals(self, stats: EngineStats) -> Iterator[str]:
        yield from self._gauge(RUNNING, stats.running)
        yield from self._gauge(WAITING, stats.waiting)
        if stats.cache_blocks_used is not None and stats.cache_blocks_total:
            yield from self._gauge(CACHE_USE, stats.cache_blocks_used / stats.cache_blocks_total)
        yield from self._counter(PROMPT_TOKENS, stats.prompt_tokens_total)
        yield from self._counter(GENERATION_TOKENS, stats.generation_tokens_total)
        yield from self._counter(TURNS, stats.turns_total)
        yield from self._counter(TURN_SECONDS, stats.turn_seconds_total)

    def _refused(self) -> Iterator[str]:
        for status, count in sorted(self.refusals().items()):
            yield from self._counter(REFUSED, count, (str(status),))

    def _timing(self, timing: RequestTiming) -> Iterator[str]:
        yield self._line(QUEUE_SECONDS, timing.queue_seconds)
        if timing.first_token_seconds is not None:
            yield self._line(FIRST_TOKEN_SECONDS, timing.first_token_seconds)
        if gaps := timing.between_tokens_seconds:
            yield self._line(TOKEN_SECONDS, sum(gaps) / len(gaps))
            yield self._line(SLOWEST_TOKEN_SECONDS, max(gaps))

    def _gauge(self, metric: Metric, value: float) -> Iterator[str]:
        if self._last.get((metric, ())) != value:
            self._last[metric, ()] = value
            yield self._line(metric, value)

    def _counter(self, metric: Metric, total: float, labels: Labels = ()) -> Iterator[str]:
        """Yield the growth since the last time; the first time also nothing's, so that a scrape finds the metric."""
        known = self._last.get((metric, labels))
        if known is None or total > known:
            self._last[metric, labels] = total
            yield self._line(metric, total - (known or 0), labels)

    def _line(self, metric: Metric, value: float, labels: Labels = ()) -> str:
        dimensions = ",".join(
            f"{name}:{text}" for name, text in zip((*metric.labels, "ModelName", "Level"), (*labels, self.model, "Model"), strict=True)
        )
        host, now = socket.gethostname(), int(time.time())
        return f"[METRICS]{metric.name}.{_unit(metric)}:{value:.6f}|#{dimensions}|#type:{metric.kind.upper()}|#hostname:{host},{now}"


def _unit(metric: Metric) -> str:
    return "Seconds" if "seconds" in metric.name else "Count"
