"""A hundred bad objects beside a hundred good ones: the good are Ready as fast as without them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
from lmd_plane.client import eventually
from lmd_plane.objects import Objects
from lmd_plane.operators import Operator

pytestmark = pytest.mark.reliability
TURNS = 5
GOOD = 20
"""Good objects of a turn; each turn creates as many alone and as many beside as many bad ones, so that a hundred meet a hundred."""
LONGEST_RATIO = 1.3
"""The median of the turns' own ratios: both halves of a turn see the same machine, and one that was disturbed does not count."""
BAD: list[dict[str, Any]] = [
    {"engine": {"deepspeed": {"replaceWithKernelInject": True}}},
    {"engine": {"deepspeed": {"enableCudaGraph": True}}},
]
"""Valid for the API server, refused by the operator; taken in turns."""


def test_bad_objects_do_not_slow_the_good(operator: Operator, objects: Objects) -> None:
    def one_that_nobody_looks_after(name: str, index: int) -> None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"idle-{name}-{index}"}}
        objects.api.create(objects.path("ConfigMap"), body)

    def a_bad_one(name: str, index: int) -> None:
        objects.create(f"bad-{name}-{index}", BAD[index % len(BAD)])

    company = {"alone": one_that_nobody_looks_after, "beside": a_bad_one}
    seconds: dict[str, list[float]] = {name: [] for name in company}
    for turn in range(TURNS):
        for name in sorted(company, reverse=turn % 2 == 1):
            seconds[name].append(_seconds_until_ready(objects, f"{name}-{turn}", company[name]))
    eventually(lambda: len(_named(objects, "bad-", "Accepted", "False")) == TURNS * GOOD, "refusals")
    ratio = statistics.median(beside / alone for alone, beside in zip(seconds["alone"], seconds["beside"], strict=True))
    print(f"seconds until {GOOD} good ones are Ready: {seconds}, ratio {ratio:.2f}")
    assert ratio <= LONGEST_RATIO


def _seconds_until_ready(objects: Objects, prefix: str, beside: Callable[[str, int], None]) -> float:
    """Create the good ones in turns with something else, and return when all of them are Ready."""
    began = time.monotonic()
    for index in range(GOOD):
        beside(prefix, index)
        objects.create(f"{prefix}-{index}")
    eventually(lambda: len(_named(objects, f"{prefix}-", "Ready", "True")) == GOOD, f"{GOOD} Ready objects", seconds=120)
    return round(time.monotonic() - began, 2)


def _named(objects: Objects, prefix: str, condition: str, status: str) -> list[str]:
    """Return the objects whose condition has this status."""
    return [
        item["metadata"]["name"]
        for item in objects.api.get(objects.path("LargeModelDeployment"))["items"]
        if item["metadata"]["name"].startswith(prefix)
        and any(each["type"] == condition and each["status"] == status for each in item.get("status", {}).get("conditions", []))
    ]
