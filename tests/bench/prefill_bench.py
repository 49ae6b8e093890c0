"""What a long prompt does to those whose answers are running: the time between their tokens while it is read, next to the usual one.

Some clients stream one answer after the other; again and again a prompt of half the context arrives beside them and wants one token.
Writes `tests/bench/results/prefill.json`: milliseconds between tokens, and `ratio`, the 99th percentile while a prompt is read over the
median while none is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from client import Streamed, ask
from worker_bench import BIN, DOCUMENTS, MODEL, NAME, ROOT, WARM_UP, WORDS, percentile, served, started

RESULTS = ROOT / "tests" / "bench" / "results" / "prefill.json"
CONTEXT_TOKENS = 2048
ANSWERING = 8
ARRIVALS = 4
PAUSE_SECONDS = 4
"""Before the first long prompt and between two of them: some dozens of turns."""


async def interrupt(url: str, extra: dict[str, Any]) -> tuple[list[Streamed], list[Streamed]]:
    """Return the answers that were running, and the long prompts that came meanwhile."""
    words = (WORDS * 8)[: CONTEXT_TOKENS // 2]
    running, arrived = [], []
    is_over = asyncio.Event()

    await ask(url, WARM_UP, {**extra, "max_tokens": DOCUMENTS.answer_tokens})

    async def client(index: int) -> None:
        while not is_over.is_set():
            running.append(await ask(url, f"Story {index}:", {**extra, "max_tokens": 200}))

    async def arrive() -> None:
        for index in range(ARRIVALS):
            await asyncio.sleep(PAUSE_SECONDS)
            long_prompt = " ".join([f"Report {index}:", *words])  # a cache of beginnings has nothing of it
            arrived.append(await ask(url, long_prompt, {**extra, "max_tokens": 1}))
        is_over.set()

    await asyncio.gather(arrive(), *(client(index) for index in range(ANSWERING)))
    return running, arrived


def figures(running: Sequence[Streamed], arrived: Sequence[Streamed]) -> dict[str, float]:
    """Return the times between tokens with and without a prompt being read, in milliseconds, and their ratio."""
    apart: dict[bool, list[float]] = {True: [], False: []}
    for answer in running:
        for before, after in zip(answer.came, answer.came[1:], strict=False):
            is_read = any(before < prompt.came[0] and after > prompt.asked for prompt in arrived)
            apart[is_read].append(1000 * (after - before))
    usual, slowest = statistics.median(apart[False]), percentile(apart[True], 0.99)
    return {
        "prompt_seconds": round(statistics.median(prompt.came[0] - prompt.asked for prompt in arrived), 2),
        "itl_p50_ms": round(usual, 1),
        "itl_p50_reading_ms": round(statistics.median(apart[True]), 1),
        "itl_p99_reading_ms": round(slowest, 1),
        "ratio": round(slowest / usual, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what a long prompt does to running answers.")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 3], metavar="N")
    parser.add_argument("--models", type=Path, default=Path("~/.cache/lmd/models").expanduser())
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = {}
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory() as folder:
            manifest = Path(folder) / "bench.yaml"
            manifest.write_text(yaml.safe_dump(served(ranks, ANSWERING + 1, CONTEXT_TOKENS)))
            command = [str(BIN / "lmd"), "serve", str(manifest), "--port", "0", "--models", str(options.models)]
            with started(command, r"base URL (\S+?),") as address:
                url = f"{address}/predictions/{NAME}/1.0/v1/completions"
                results[str(ranks)] = figures(*asyncio.run(interrupt(url, {"model": NAME})))
        print(f"{MODEL}, {ranks} ranks, {ANSWERING} answers, prompts of {CONTEXT_TOKENS // 2} tokens: {results[str(ranks)]}", flush=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
