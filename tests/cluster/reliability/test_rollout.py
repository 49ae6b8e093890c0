"""How replicas on GPUs are replaced under `rollout.strategy: Auto`, on nodes that have room for one more and on nodes that have not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lmd_plane.client import Api, eventually
from lmd_plane.components import fake_node
from lmd_plane.objects import Objects
from lmd_plane.operators import Operator

pytestmark = pytest.mark.reliability
OURS = "tests.largemodel.dev/rollout"
GPUS = {"accelerator": {"type": "Nvidia"}, "parallelism": {"tensor": 4}, "replicas": 2}


@pytest.fixture
def add_node(api: Api, namespace: str) -> Iterator[Callable[[int], None]]:
    """Add a node of eight GPUs that only this test's pods may use."""
    added = []

    def add(index: int) -> None:
        node = fake_node(index)
        node["metadata"]["name"] = name = f"{namespace}-{index}"
        node["metadata"]["labels"] |= {OURS: namespace, "kubernetes.io/hostname": name}
        node["spec"] = {"taints": [{"key": OURS, "value": namespace, "effect": "NoSchedule"}]}
        api.create("/api/v1/nodes", node)
        added.append(name)

    yield add
    for name in added:
        api.delete(f"/api/v1/nodes/{name}")


def surge(objects: Objects) -> Any:
    deployment = objects.get("Deployment", "small")
    assert deployment is not None
    return deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"]


def told(objects: Objects, revision: str) -> dict[str, str]:
    """The notes of the roll-out to a revision, by reason."""
    events = objects.api.get(objects.path("Event"))["items"]
    return {event["reason"]: event["note"] for event in events if event.get("action") == "Roll" and revision in event["note"]}


def test_a_roll_out_surges_where_there_is_room_and_makes_room_where_not(
    operator: Operator, objects: Objects, namespace: str, add_node: Callable[[int], None], assert_quiet: Callable[..., None]
) -> None:
    add_node(0)
    tolerations = [{"key": OURS, "operator": "Equal", "value": namespace, "effect": "NoSchedule"}]
    objects.create("small", {**GPUS, "template": {"nodeSelector": {OURS: namespace}, "tolerations": tolerations}})
    objects.wait_settled("small")
    first = objects.parent("small")["status"]["revision"]["updated"]
    assert (surge(objects), told(objects, first)) == (1, {}), "nothing was replaced"

    objects.change("small", {"engine": {"contextTokens": 1024}})
    objects.wait_settled("small")
    second = objects.parent("small")["status"]["revision"]["updated"]
    assert second != first
    eventually(lambda: set(told(objects, second)) == {"ReplacingBySurge", "ReplacingOneByOne"}, "events of the full node")
    assert "1 Insufficient nvidia.com/gpu" in told(objects, second)["ReplacingOneByOne"]
    eventually(lambda: surge(objects) == 1, "the next roll-out tries again")
    assert_quiet(operator, seconds=1)

    add_node(1)
    objects.change("small", {"engine": {"contextTokens": 1536}})
    objects.wait_settled("small")
    third = objects.parent("small")["status"]["revision"]["updated"]
    eventually(lambda: set(told(objects, third)) == {"ReplacingBySurge"}, "the event of the surge")
    assert_quiet(operator, seconds=1)
