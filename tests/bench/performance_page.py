"""docs/performance.md, from the benchmarks' results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from worker_bench import MIXES, MODEL, RESULTS, SPARE_CORE_RESULTS

HEAD = f"""\
# What it costs

From benchmarks of this repository; `tests/bench/results` has all figures. Measured on two CPU cores (Intel Xeon with AVX-512, no GPU) with
{MODEL} in float32. Machines differ: run the commands on yours.

## Serving

`make bench-worker` lets 1 to 128 clients ask at once, each for its next answer when the last is whole. First come documents,
{MIXES["documents"]}; then questions, {MIXES["questions"]}.
Tokens a second through TorchServe, as a share of those of

"""
SERVING_FOOT = """
On all cores the frontend and the benchmark's own clients take what they need from the model, which is most of what is lost there. With a
core left to them, the model computes on the other one, through TorchServe and without.

## Long prompts beside answers

`tests/bench/prefill_bench.py` sends a prompt of half the context to a model that answers others. Time between their tokens:

"""
OPERATOR_HEAD = """
## The operator

`make bench-operator` applies objects to a real control plane and waits until all children are there:

"""


def page() -> str:
    """Return the page."""
    results = RESULTS.parent
    return "".join(
        [
            HEAD,
            _serving(_read(RESULTS), _read(SPARE_CORE_RESULTS)),
            SERVING_FOOT,
            _prefill(_read(results / "prefill.json")),
            OPERATOR_HEAD,
            _operator(_read(results / "operator.json")),
        ]
    )


def _serving(shared: Mapping[str, Any], spare: Mapping[str, Any]) -> str:
    head = [
        "clients",
        "the engine called directly, on all cores",
        "the same, with a core left to the frontend",
        "`transformers serve --continuous-batching`",
        "`generate`, one request after the other",
    ]
    rows = [
        [
            count,
            _share(shared, count, "engine"),
            _share(spare, count, "engine"),
            _share(shared, count, "transformers_serve"),
            _share(shared, count, "generate"),
        ]
        for count in next(iter(shared.values()))
    ]
    return _table(head, rows)


def _share(results: Mapping[str, Any], count: str, way: str) -> str:
    """Return TorchServe's share of a way's tokens a second, for each mix; nothing where that was not measured."""
    found = [rows[count] for rows in results.values() if count in rows]
    return ", ".join(f"{row['torchserve']['tokens_per_second'] / row[way]['tokens_per_second']:.2f}" for row in found)


def _prefill(results: Mapping[str, Any]) -> str:
    head = ["ranks", "usual, median", "beside the prompt, 99th percentile", "ratio"]
    rows = [
        [ranks, f"{row['itl_p50_ms']:g} ms", f"{row['itl_p99_reading_ms']:g} ms", f"{row['ratio']:g}"] for ranks, row in results.items()
    ]
    return _table(head, rows)


def _operator(results: Sequence[Mapping[str, Any]]) -> str:
    head = [
        "objects",
        "seconds",
        "seconds of writing the same children bare",
        "CPU an object",
        "writes an object",
        "writes in a minute at rest",
    ]
    rows = [
        [
            str(row["n"]),
            f"{row['seconds']:g}",
            f"{row['bare_writer_seconds']:g}",
            f"{row['cpu_ms_per_object']:g} ms",
            f"{row['writes_per_object']:g}",
            str(row["idle_writes_60s"]),
        ]
        for row in results
    ]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---:"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _read(path: Any) -> Any:
    return json.loads(path.read_text())


if __name__ == "__main__":
    print(page(), end="")
