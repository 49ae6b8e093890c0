"""A hundred bad objects beside a hundred good ones: the good are Ready as fast as without them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from lmd_plane.client import eventually
from lmd_plane.objects import CHILDREN, Objects
from lmd_plane.operators import Operator

pytestmark = pytest.mark.reliability
COUNT = 100
ROUNDS = 2
LONGEST_RATIO = 1.3
"""Both times are the best of their rounds, taken in turns on the same plane; what is left is the noise of a busy machine."""
BAD: list[dict[str, Any]] = [
    {"engine": {"deepspeed": {"replaceWithKernelInject": True}}},
    {"engine": {"deepspeed": {"enableCudaGraph": True}}},
]
"""Valid for the API server, refused by the operator; taken in turns."""


def test_bad_objects_do_not_slow_the_good(operator: Operator, objects: Objects) -> None:
    def one_that_nobody_looks_after(index: int) -> None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"idle-{index}"}}
        objects.api.create(objects.path("ConfigMap"), body)

    def a_bad_one(index: int) -> None:
        objects.create(f"bad-{index}", BAD[index % len(BAD)])

    without, beside = [], []
    for number in range(ROUNDS):
        without.append(_seconds_until_ready(objects, f"alone-{number}", one_that_nobody_looks_after))
        _clear(objects)
        beside.append(_seconds_until_ready(objects, f"beside-{number}", a_bad_one))
        eventually(lambda: len(_named(objects, "bad-", "Accepted", "False")) == COUNT, "refusals")
        _clear(objects)
    ratio = min(beside) / min(without)
    print(f"{COUNT} good: {without} s alone, {beside} s beside {COUNT} bad ones, ratio {ratio:.2f}")
    assert ratio <= LONGEST_RATIO


def _seconds_until_ready(objects: Objects, prefix: str, beside: Callable[[int], None]) -> float:
    """Create the good ones in turns with something else, and return when all of them are Ready."""
    began = time.monotonic()
    for index in range(COUNT):
        beside(index)
        objects.create(f"{prefix}-{index}")
    eventually(lambda: len(_named(objects, prefix, "Ready", "True")) == COUNT, f"{COUNT} Ready objects", seconds=180)
    return round(time.monotonic() - began, 2)


def _named(objects: Objects, prefix: str, condition: str, status: str) -> list[str]:
    """Return the objects whose condition has this status."""
    return [
        item["metadata"]["name"]
        for item in objects.api.get(objects.path("LargeModelDeployment"))["items"]
        if item["metadata"]["name"].startswith(prefix)
        and any(each["type"] == condition and each["status"] == status for each in item.get("status", {}).get("conditions", []))
    ]


def _clear(objects: Objects) -> None:
    """Delete everything and wait until it is gone, so that the next round finds the plane as the last one did."""
    objects.api.delete(objects.path("LargeModelDeployment"))
    objects.api.delete(objects.path("ConfigMap"))
    kinds = (*CHILDREN, "ReplicaSet", "Pod")
    paths = [f"{objects.path(kind)}?labelSelector=largemodel.dev%2Fdeployment" for kind in kinds]
    eventually(lambda: not any(objects.api.get(path)["items"] for path in paths), "end of all children", seconds=180)
