"""One object's life with a healthy API server: few writes, quiet, drift, change, deletion, other people's objects."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from lmd_plane.client import eventually
from lmd_plane.objects import CHILDREN, Objects, seconds_until
from lmd_plane.operators import Operator
from lmd_plane.plane import Plane

pytestmark = pytest.mark.reliability
IS_LONG = os.environ.get("LMD_LONG") == "1"
IDLE_SECONDS = 60.0 if IS_LONG else 15.0
REPAIR_SECONDS = 5.0
SLACK_SECONDS = 5.0
"""On top of a bound, for a machine that is busy with other things."""
GOOD, BAD = (20, 100) if IS_LONG else (5, 20)
IMPOSSIBLE = {"engine": {"deepspeed": {"replaceWithKernelInject": True}}}
"""Valid for the API server, refused by the operator."""
POSSIBLE_AGAIN = {"engine": {"deepspeed": {"replaceWithKernelInject": False}}}
AssertQuiet = Callable[..., None]
AssertPaced = Callable[[Operator, int], None]
AssertWithin = Callable[[str, float, float], None]


def test_one_write_a_child_then_silence(
    own_plane: Plane, operator: Operator, objects: Objects, assert_quiet: AssertQuiet, assert_paced: AssertPaced
) -> None:
    mark = own_plane.audit.mark()
    objects.create("small", {"replicas": 2})
    objects.wait_settled("small")
    assert_quiet(operator, seconds=IDLE_SECONDS)
    written = operator.writes(own_plane, mark)
    per_object = Counter((entry.resource, entry.subresource, entry.name) for entry in written)
    status = per_object.pop(("largemodeldeployments", "status", "small"))
    print(f"writes: {sum(per_object.values())} of children, {status} of the status")
    assert set(per_object.values()) == {1}
    assert len(per_object) == len(CHILDREN) == len(objects.children("small"))
    assert_paced(operator, mark)


@pytest.mark.parametrize("ends", ["by SIGKILL", "by SIGTERM"])
def test_a_restart_writes_nothing(own_plane: Plane, operator: Operator, objects: Objects, assert_quiet: AssertQuiet, ends: str) -> None:
    names = ["a", "b", "c"]
    for name in names:
        objects.create(name)
    objects.wait_settled(*names)
    assert_quiet(operator, seconds=0.5)
    mark = own_plane.audit.mark()
    if ends == "by SIGKILL":
        operator.kill()
    else:
        seconds = operator.terminate()
        print(f"SIGTERM took {seconds:.1f} s")
        assert seconds < 10
        lease = objects.get("Lease", "lmd-operator")
        assert lease is not None
        assert not lease["spec"].get("holderIdentity")
    operator.start()
    operator.wait_leading()
    assert_quiet(operator, seconds=IDLE_SECONDS / 3)
    assert operator.writes(own_plane, mark) == []
    assert 'name="a"' in operator.scrape("metrics")
    assert operator.metric("lmd_operator_objects") == len(names)


def _strip(*path: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def patch(_: dict[str, Any]) -> dict[str, Any]:
        document: Any = None
        for key in reversed(path):
            document = {key: document}
        return document

    return patch


OWNED: dict[str, dict[str, Any] | None] = {
    "ConfigMap": None,
    "NetworkPolicy": {"spec": {"ingress": []}},
    "Service": {"spec": {"selector": {"largemodel.dev/deployment": "other"}}},
    "PodDisruptionBudget": {"spec": {"maxUnavailable": 2}},
    "Deployment": {"spec": {"replicas": 5}},
}
"""A merge patch of a field that is ours; a ConfigMap's data cannot be changed, it is immutable."""


@pytest.mark.parametrize("is_restarted", [False, True], ids=["while it runs", "while it is down"])
@pytest.mark.parametrize("drift", ["deleted", "label stripped", "owner stripped", "field changed"])
def test_drift_is_repaired(
    operator: Operator, objects: Objects, assert_quiet: AssertQuiet, assert_within: AssertWithin, drift: str, is_restarted: bool
) -> None:
    objects.create("small", {"replicas": 2})
    objects.wait_settled("small")
    assert_quiet(operator, seconds=0.2)
    expected = objects.image("small")
    before = objects.children("small")
    if is_restarted:
        operator.kill()
    drifted = 0
    for (kind, name), child in before.items():
        path = objects.path(kind, name)
        match drift:
            case "deleted":
                objects.api.delete(path)
            case "label stripped":
                objects.api.patch(path, {"metadata": {"labels": {"largemodel.dev/deployment": None}}})
            case "owner stripped":
                objects.api.patch(path, {"metadata": {"ownerReferences": None}})
            case _ if OWNED[kind] is not None:
                changed = objects.api.patch(path, OWNED[kind])
                assert changed["metadata"]["resourceVersion"] != child["metadata"]["resourceVersion"]
            case _:
                continue
        drifted += 1
        if not is_restarted:
            taken = seconds_until(lambda: objects.image("small") == expected, f"repair of {kind}, {drift}")
            assert_within(f"{kind} {drift}: repaired and settled", taken, REPAIR_SECONDS + SLACK_SECONDS)
    if is_restarted:
        operator.start()
    objects.wait_image("small", expected)
    assert drifted >= len(CHILDREN) - 1
    assert_quiet(operator, seconds=1)


def test_what_others_add_stays(own_plane: Plane, operator: Operator, objects: Objects, assert_quiet: AssertQuiet) -> None:
    objects.create("small", {"replicas": 2})
    objects.wait_settled("small")
    assert_quiet(operator, seconds=0.2)
    mark = own_plane.audit.mark()
    for kind, name in objects.children("small"):
        objects.api.patch(objects.path(kind, name), {"metadata": {"annotations": {"example.com/note": "mine"}}})
    objects.api.patch(objects.path("Deployment", "small"), {"spec": {"minReadySeconds": 0, "paused": False}})
    assert_quiet(operator, seconds=3)
    operator.kill()
    operator.start()
    operator.wait_leading()
    assert_quiet(operator, seconds=3)
    # an annotation makes a Deployment a new generation, which is not observed for a moment: the status may say so
    written = [entry for entry in operator.writes(own_plane, mark) if entry.resource != "largemodeldeployments"]
    assert written == []
    assert all(child["metadata"]["annotations"]["example.com/note"] == "mine" for child in objects.children("small").values())


def test_a_changed_spec_rolls_out_and_old_texts_are_pruned(operator: Operator, objects: Objects, assert_quiet: AssertQuiet) -> None:
    objects.create("small", {"rollout": {"revisionHistoryLimit": 2}})
    objects.wait_settled("small")
    revisions = [objects.parent("small")["status"]["revision"]["updated"]]
    changes: list[dict[str, Any]] = [{"parallelism": {"tensor": 2}}, *({"engine": {"contextTokens": size}} for size in (1024, 1536, 512))]
    for change in changes:
        objects.change("small", change)
        objects.wait_settled("small")
        status = objects.parent("small")["status"]
        assert status["revision"]["current"] == status["revision"]["updated"] not in revisions
        revisions.append(status["revision"]["updated"])
    names = [f"small-{revision}" for revision in revisions[-3:]]
    eventually(lambda: [name for _, name in objects.children("small", ("ConfigMap",))] == sorted(names), "pruned ConfigMaps")
    pods = objects.children("small", ("Pod",)).values()
    assert {pod["metadata"]["labels"]["largemodel.dev/revision"] for pod in pods} == {revisions[-1]}
    assert_quiet(operator, seconds=1)


def test_scale_budget_suspend_and_restart(
    own_plane: Plane, operator: Operator, objects: Objects, kubectl: Any, assert_quiet: AssertQuiet
) -> None:
    mark = own_plane.audit.mark()
    objects.create("small")
    objects.wait_settled("small")
    assert not objects.children("small", ("PodDisruptionBudget",))
    kubectl("scale", "largemodeldeployment/small", "--replicas=2")
    objects.wait_settled("small")
    eventually(lambda: objects.children("small", ("PodDisruptionBudget",)), "budget for two replicas")
    scale = objects.api.get(f"{objects.path('LargeModelDeployment', 'small')}/scale")
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (2, 2)
    assert len(objects.children("small", ("Pod",))) == 2
    kubectl("scale", "largemodeldeployment/small", "--replicas=1")
    eventually(lambda: not objects.children("small", ("PodDisruptionBudget",)), "end of the budget")
    objects.wait_settled("small")
    first = set(objects.children("small", ("Pod",)))
    objects.change("small", {"restart": "again"})
    eventually(lambda: objects.is_settled("small") and not first & set(objects.children("small", ("Pod",))), "restarted pods")
    objects.change("small", {"suspend": True})
    eventually(lambda: not objects.children("small", ("Pod",)), "suspension")
    eventually(lambda: objects.condition("small", "Ready").get("reason") == "Suspended", "condition of the suspension")
    objects.wait_settled("small")  # what was asked to be empty is Ready while it is
    assert objects.parent("small")["status"]["replicas"] == 0
    objects.change("small", {"suspend": False})
    objects.wait_settled("small")
    assert_quiet(operator, seconds=1)
    parents = [entry for entry in operator.writes(own_plane, mark) if entry.resource == "largemodeldeployments"]
    assert {entry.subresource for entry in parents} == {"status"}, "the operator never writes a spec"


def test_deletion_takes_everything_and_is_left_alone(own_plane: Plane, operator: Operator, objects: Objects) -> None:
    objects.create("small", {"replicas": 2})
    objects.wait_settled("small")
    mark = own_plane.audit.mark()
    objects.delete("small")
    objects.wait_gone("small")
    assert [entry for entry in operator.writes(own_plane, mark) if entry.code < 300] == []
    assert 'name="small"' not in operator.scrape("metrics")


def test_a_successor_of_the_same_name_gets_its_own_children(operator: Operator, objects: Objects, assert_quiet: AssertQuiet) -> None:
    """Each is deleted while the last one's children are made: an answer that told of one that was gone again kept it away for ever."""

    def owners() -> list[str]:
        return [child["metadata"]["ownerReferences"][0]["uid"] for child in objects.children("small").values()]

    objects.create("small", {"replicas": 2})
    for _ in range(3):
        objects.wait_settled("small")
        for _ in range(3):
            objects.delete("small")
            created = objects.create("small", {"replicas": 2})
        # what the first one left must go before the successor's can be made
        expected = [created["metadata"]["uid"]] * len(CHILDREN)
        eventually(lambda expected=expected: owners() == expected, "children of the successor", seconds=180)  # type: ignore[misc]
    objects.wait_settled("small")
    assert objects.condition("small", "Stalled")["status"] == "False"
    assert_quiet(operator, seconds=1)


def test_a_child_that_ends_slowly_is_awaited_and_made_anew(operator: Operator, objects: Objects) -> None:
    objects.create("small")
    objects.wait_settled("small")
    path = objects.path("Service", "small")
    first = objects.api.patch(path, {"metadata": {"finalizers": ["example.com/slow"]}})
    objects.api.delete(path)
    eventually(lambda: "is being deleted" in objects.condition("small", "Reconciling")["message"], "word of it")
    assert not objects.is_settled("small")
    objects.api.patch(path, {"metadata": {"finalizers": None}})
    objects.wait_settled("small")
    assert objects.api.get(path)["metadata"]["uid"] != first["metadata"]["uid"]


@pytest.mark.parametrize("kind", ["Service", "Deployment", "ConfigMap"])
def test_other_peoples_objects_are_not_touched(operator: Operator, objects: Objects, assert_quiet: AssertQuiet, kind: str) -> None:
    name = "small"
    if kind == "ConfigMap":  # its name is known once there has been one like it
        objects.create("small")
        objects.wait_settled("small")
        name = next(name for _, name in objects.children("small", ("ConfigMap",)))
        objects.delete("small")
        objects.wait_gone("small")
    pod = {"metadata": {"labels": {"app": "theirs"}}, "spec": {"containers": [{"name": "c", "image": "none"}]}}
    body = {
        "Service": {"apiVersion": "v1", "spec": {"ports": [{"port": 1}]}},
        "Deployment": {"apiVersion": "apps/v1", "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "theirs"}}, "template": pod}},
        "ConfigMap": {"apiVersion": "v1", "data": {"theirs": "yes"}},
    }[kind]
    objects.api.create(objects.path(kind), {**body, "kind": kind, "metadata": {"name": name}})
    theirs = eventually(lambda: _without_status(objects.get(kind, name)), "their object")
    objects.create("small")
    eventually(lambda: objects.condition("small", "Stalled").get("status") == "True", "condition about it")
    stalled = objects.condition("small", "Stalled")
    assert stalled["reason"] == "ForeignObject"
    assert f"{kind} {name}" in stalled["message"]

    def events() -> list[dict[str, Any]]:
        return [event for event in objects.api.get(objects.path("Event"))["items"] if event["reason"] == "ForeignObject"]

    eventually(events, "event about it")
    assert_quiet(operator, seconds=2)
    assert len(events()) == 1
    assert _without_status(objects.get(kind, name)) == theirs
    objects.api.delete(objects.path(kind, name))
    objects.change("small", {"restart": "now"})  # nothing tells us of an object that was never ours
    objects.wait_settled("small")


def _without_status(document: dict[str, Any] | None) -> dict[str, Any] | None:
    if document is None:
        return None
    metadata = {key: value for key, value in document["metadata"].items() if key not in ("resourceVersion", "managedFields", "annotations")}
    return {**{key: value for key, value in document.items() if key != "status"}, "metadata": metadata}


def test_a_bad_spec_disturbs_nothing_and_a_good_one_heals(own_plane: Plane, operator: Operator, objects: Objects) -> None:
    objects.create("small")
    objects.wait_settled("small")
    expected = {key: value for key, value in objects.image("small").items() if key != "status"}
    pods = set(objects.children("small", ("Pod",)))
    mark = own_plane.audit.mark()
    objects.change("small", IMPOSSIBLE)
    eventually(lambda: objects.condition("small", "Accepted").get("status") == "False", "refusal")
    assert {entry.subresource for entry in operator.writes(own_plane, mark)} == {"status"}
    assert {key: value for key, value in objects.image("small").items() if key != "status"} == expected
    objects.change("small", POSSIBLE_AGAIN)
    objects.wait_settled("small")
    assert {key: value for key, value in objects.image("small").items() if key != "status"} == expected
    assert set(objects.children("small", ("Pod",))) == pods


def test_a_repeated_transition_is_one_event_with_a_series(operator: Operator, objects: Objects) -> None:
    objects.create("small")
    objects.wait_settled("small")
    for _ in range(3):
        objects.change("small", IMPOSSIBLE)
        eventually(lambda: objects.condition("small", "Accepted").get("status") == "False", "refusal")
        objects.change("small", POSSIBLE_AGAIN)
        objects.wait_settled("small")

    def told() -> dict[str, list[int]]:
        counts: dict[str, list[int]] = {}
        for event in objects.api.get(objects.path("Event"))["items"]:
            if event["regarding"]["kind"] == "LargeModelDeployment":
                counts.setdefault(event["reason"], []).append(event.get("series", {}).get("count", 1))
        return counts

    eventually(lambda: told().get("NotAvailable") == [3] and told().get("Valid") == [3], "series of three")
    (event,) = [event for event in objects.api.get(objects.path("Event"))["items"] if event["reason"] == "NotAvailable"]
    assert event["series"]["lastObservedTime"] > event["eventTime"]
    assert event["type"] == "Warning"
    assert "replaceWithKernelInject" in event["note"]


def test_many_bad_objects_do_not_disturb_the_good(
    own_plane: Plane, operator: Operator, objects: Objects, assert_quiet: AssertQuiet, assert_paced: AssertPaced
) -> None:
    good = [f"good-{index}" for index in range(GOOD)]
    mark = own_plane.audit.mark()
    for index in range(BAD):
        objects.create(f"bad-{index}", IMPOSSIBLE)
        if index < GOOD:
            objects.create(good[index])
    objects.wait_settled(*good, seconds=180)
    eventually(lambda: all(objects.condition(f"bad-{index}", "Accepted").get("status") == "False" for index in range(BAD)), "refusals")
    assert_quiet(operator, seconds=2)
    per_object = Counter((entry.resource, entry.subresource, entry.name) for entry in operator.writes(own_plane, mark))
    assert max(number for (_, subresource, _), number in per_object.items() if subresource != "status") == 1
    assert_paced(operator, mark)
    assert {name.split("-")[0] for resource, _, name in per_object if resource != "largemodeldeployments"} == {"good"}
