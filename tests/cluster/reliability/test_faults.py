"""What an API server and a network do wrong: the operator lives on in the same process, ends where it should, and is quiet."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest
from lmd_plane.client import eventually
from lmd_plane.faults import DelayEvents, Exchange, FailWatch, FaultProxy, LoseResponse, Match, Reply
from lmd_plane.faults.rules import Action
from lmd_plane.objects import Objects
from lmd_plane.operators import Operator
from lmd_plane.plane import Plane

pytestmark = pytest.mark.reliability
IS_LONG = os.environ.get("LMD_LONG") == "1"
PAUSE_SECONDS = 30.0
CHILD_RESOURCES = ("configmaps", "networkpolicies", "services", "poddisruptionbudgets", "deployments", "pods")
AssertQuiet = Callable[..., None]


@pytest.fixture
def running(faulty: Operator, objects: Objects) -> Operator:
    """An operator behind the proxy that leads and has settled one object, `first`."""
    faulty.start()
    faulty.wait_leading()
    objects.create("first", {"replicas": 2})
    objects.wait_settled("first")
    return faulty


@pytest.fixture
def assert_works(objects: Objects, assert_quiet: AssertQuiet) -> Callable[[Operator, int], None]:
    """Fail unless the same process still serves new objects, changes, drift and deletion, and is quiet then."""

    def check(operator: Operator, pid: int) -> None:
        objects.create("second")
        objects.change("first", {"replicas": 1})
        objects.api.delete(objects.path("Service", "first"))
        objects.wait_settled("first", "second", seconds=120)
        eventually(lambda: objects.get("Service", "first"), "Service made anew")
        eventually(lambda: not objects.children("first", ("PodDisruptionBudget",)), "end of the budget")
        objects.delete("second")
        objects.wait_gone("second")
        assert operator.pid == pid
        assert_quiet(operator, seconds=2)

    return check


Works = Callable[[Operator, int], None]


WATCH_FAULTS: dict[str, tuple[Action | None, str | None]] = {
    "reset": (None, None),
    "410 to the watch": (Reply(410, "Expired"), "watch"),
    "410 to the list": (Reply(410, "Expired"), "list"),
    "404 to the watch": (Reply(404, "NotFound"), "watch"),
    "500 to the watch": (Reply(500, "InternalError"), "watch"),
    "ERROR 410 in the stream": (FailWatch(410), "watch"),
    "ERROR 500 in the stream": (FailWatch(500), "watch"),
}


@pytest.mark.parametrize("fault", WATCH_FAULTS)
def test_watches_fail_while_things_change(running: Operator, faults: FaultProxy, objects: Objects, assert_works: Works, fault: str) -> None:
    pid = running.pid
    objects.create("doomed")
    objects.wait_settled("doomed")
    action, verb = WATCH_FAULTS[fault]
    rules = [faults.add(Match(verb=verb), action, times=14)] if action else []
    if verb == "list":  # a list only follows a watch that cannot go on
        rules.append(faults.add(Match(verb="watch"), FailWatch(410), times=14))
    objects.delete("doomed")
    assert faults.cut_watches()
    objects.api.delete(objects.path("Service", "first"))
    objects.api.delete(objects.path("Deployment", "first"))
    eventually(lambda: not rules or rules[0].fired >= 7, f"{fault} to every watch", seconds=120)
    faults.clear()
    faults.cut_watches()
    objects.wait_gone("doomed", seconds=90)
    eventually(lambda: objects.get("Deployment", "first") and objects.get("Service", "first"), "children made anew", seconds=90)
    assert_works(running, pid)


def test_frozen_watches(running: Operator, faults: FaultProxy, objects: Objects, assert_works: Works) -> None:
    """A silent watch is found out after 70 s (ours, by kopf) and 150 s (children); the short run thaws it before."""
    pid = running.pid
    assert faults.freeze_watches() >= 7
    objects.delete("first")
    objects.create("first", {"replicas": 2})
    if IS_LONG:
        eventually(lambda: objects.is_settled("first"), "recovery by itself", seconds=200)
    else:
        time.sleep(5)
        faults.thaw_watches()
    objects.wait_settled("first", seconds=200)
    assert_works(running, pid)


def test_an_edit_that_comes_late_is_not_lost(running: Operator, faults: FaultProxy, objects: Objects, assert_works: Works) -> None:
    """The answer to a status write holds the newest spec; the watch tells of the edit later, and with an older version."""
    pid = running.pid
    late = faults.add(Match(verb="watch", resource="largemodeldeployments"), DelayEvents(seconds=4, type="MODIFIED", name="edited"))
    frozen: list[int] = []

    def edit(exchange: Exchange) -> None:
        """Once the children are made and before the status is written; no news of children will tell of it either."""
        if exchange.request.resource == "deployments" and not frozen:
            frozen.append(sum(faults.freeze_watches(Match(resource=resource)) for resource in CHILD_RESOURCES))
            objects.change("edited", {"replicas": 3})

    faults.after_write(edit)
    objects.create("edited", {"replicas": 2})
    eventually(lambda: frozen and late.fired, "status write, and then the edit")
    eventually(lambda: objects.api.get(objects.path("Deployment", "edited"))["spec"]["replicas"] == 3, "edit", seconds=20)
    assert frozen == [len(CHILD_RESOURCES)]
    faults.clear()
    faults.thaw_watches()
    objects.wait_settled("edited")
    assert_works(running, pid)


WRITE_FAULTS: dict[str, Action] = {
    "409": Reply(409, "Conflict"),
    "422": Reply(422, "Invalid"),
    "429": Reply(429, "TooManyRequests", retry_after_seconds=1),
    "500": Reply(500, "InternalError"),
    "503": Reply(503, "ServiceUnavailable"),
    "response lost": LoseResponse(),
}


@pytest.mark.parametrize("fault", WRITE_FAULTS)
def test_every_first_write_fails(
    running: Operator, faults: FaultProxy, objects: Objects, assert_quiet: AssertQuiet, assert_works: Works, fault: str
) -> None:
    pid = running.pid
    objects.create("small", {"replicas": 2})
    objects.wait_settled("small")
    assert_quiet(running, seconds=0.2)
    expected = objects.image("small")
    objects.delete("small")
    objects.wait_gone("small")
    resources = ("configmaps", "networkpolicies", "services", "poddisruptionbudgets", "deployments", "largemodeldeployments")
    rules = [faults.add(Match(verb="write", resource=resource), WRITE_FAULTS[fault], times=1) for resource in resources]
    objects.create("small", {"replicas": 2})
    objects.wait_settled("small", seconds=120)
    objects.wait_image("small", expected)
    assert [rule.fired for rule in rules] == [1] * len(rules)
    faults.clear()
    assert_works(running, pid)


def test_the_api_server_dies_and_comes_back(own_plane: Plane, running: Operator, objects: Objects, assert_works: Works) -> None:
    pid = running.pid
    with own_plane.killed("kube-apiserver"):
        time.sleep(3)
    assert_works(running, pid)


def test_etcd_stops_for_a_while(own_plane: Plane, running: Operator, objects: Objects, assert_works: Works) -> None:
    pid = running.pid
    with own_plane.paused("etcd"):
        time.sleep(PAUSE_SECONDS)
    assert_works(running, pid)
