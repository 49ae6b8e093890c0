"""How long a plan takes: every published model on five devices and two links.

    python tests/bench/planner_bench.py

Prints one JSON line: plans made, and median, 99th percentile and longest milliseconds of one.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import get_args

from lmd_operator.planning.answers import Wishes
from lmd_operator.planning.memory import GIB
from lmd_operator.planning.planner import plan
from lmd_operator.planning.selection import Accelerator, Link
from lmd_operator.planning.tensors import shape_of

MODELS = Path(__file__).parents[1] / "unit" / "lmd_operator" / "published_models.json"
DEVICES_GIB = (16, 24, 40, 80, 141)


def main() -> None:
    """Plan and count."""
    seconds = []
    for entry in json.loads(MODELS.read_text()):
        for size in DEVICES_GIB:
            for link in get_args(Link):
                started = time.perf_counter()
                plan(shape_of(entry["config"]), Accelerator(size * GIB, link=link), Wishes())
                seconds.append(time.perf_counter() - started)
    milliseconds = sorted(1000 * each for each in seconds)
    found = {
        "plans": len(milliseconds),
        "median_ms": round(statistics.median(milliseconds), 2),
        "p99_ms": round(milliseconds[len(milliseconds) * 99 // 100], 2),
        "longest_ms": round(milliseconds[-1], 2),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
