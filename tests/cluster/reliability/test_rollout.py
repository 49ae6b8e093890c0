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
        eventually(lambda: is_usable(api.get(f"/api/v1/nodes/{name}")), "node that pods may be placed on")

    yield add
    for name in added:
        api.delete(f"/api/v1/nodes/{name}")


def is_usable(node: dict[str, Any]) -> bool:
    """Whether a node is Ready, and the taint of nodes that are not yet is gone."""
    conditions = {each["type"]: each["status"] for each in node.get("status", {}).get("conditions", [])}
    return conditions.get("Ready") == "True" and [taint["key"] for taint in node["spec"]["taints"]] == [OURS]


def surge(objects: Objects) -> Any:
    deployment = objects.get("Deployment", "small")
    assert deployment is not None
    return deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"]


def told(objects: Objects) -> list[str]:
    """What roll-outs have told so far: the reason of each, and the note where there was no room."""
    events = [event for event in objects.api.get(objects.path("Event"))["items"] if event.get("action") == "Roll"]
    return sorted(f"{event['reason']} {event['note']}" for event in events)


def test_a_roll_out_surges_where_there_is_room_and_makes_room_where_not(
    operator: Operator, objects: Objects, namespace: str, add_node: Callable[[int], None], assert_quiet: Callable[..., None]
) -> None:
    add_node(0)
    tolerations = [{"key": OURS, "operator": "Equal", "value": namespace, "effect": "NoSchedule"}]
    objects.create("small", {**GPUS, "template": {"nodeSelector": {OURS: namespace}, "tolerations": tolerations}})
    objects.wait_settled("small")
    assert (surge(objects), told(objects)) == (1, []), "nothing was replaced"

    objects.change("small", {"engine": {"contextTokens": 1024}})
    objects.wait_settled("small")
    eventually(lambda: [entry.split()[0] for entry in told(objects)] == ["ReplacingBySurge", "ReplacingOneByOne"], "both events")
    assert "(1 Insufficient nvidia.com/gpu)" in told(objects)[-1].partition(" ")[2]
    eventually(lambda: surge(objects) == 1, "the next roll-out tries again")
    first = set(objects.children("small", ("Pod",)))
    objects.change("small", {"restart": "again"})
    eventually(lambda: objects.is_settled("small") and not first & set(objects.children("small", ("Pod",))), "restart without room")
    eventually(lambda: surge(objects) == 1, "the next roll-out tries again")
    assert_quiet(operator, seconds=1)

    add_node(1)
    before = told(objects)
    objects.change("small", {"engine": {"contextTokens": 1536}})
    objects.wait_settled("small")
    (new,) = eventually(lambda: [entry for entry in told(objects) if entry not in before], "the event of the surge")
    assert new.startswith("ReplacingBySurge ")
    assert_quiet(operator, seconds=1)
