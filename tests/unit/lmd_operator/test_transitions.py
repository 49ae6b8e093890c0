"""Which Events a change of the status is worth, and what they look like on the wire."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest

from lmd_operator.api.parse import parse
from lmd_operator.api.status import Status
from lmd_operator.transitions import NOTE_LIMIT_BYTES, Aggregator, Occurrence, Told, event_document, micro_time, transitions

NOW = "2026-01-01T00:00:00Z"
OWNER = parse(
    {
        "apiVersion": "largemodel.dev/v1alpha1",
        "kind": "LargeModelDeployment",
        "metadata": {"name": "llama", "namespace": "prod", "uid": "u1"},
        "spec": {"model": {"source": {"path": {"path": "/models/llama"}}}},
    }
)
TOLD = Told("Warning", "CrashLooping", "Serve", "1 of 2 replicas: it ended.")


def a_status(conditions: str = "", *, revision: str = "", generation: int = 1) -> Status:
    """A status of `Type=Status/Reason` conditions; each message is its type and reason."""
    entries = []
    for word in conditions.split():
        name, rest = word.split("=")
        status, reason = rest.split("/")
        entries.append(
            {
                "type": name,
                "status": status,
                "reason": reason,
                "message": f"{name} {reason}.",
                "observedGeneration": generation,
                "lastTransitionTime": NOW,
            }
        )
    return Status.model_validate(
        {"conditions": entries, "revision": {"updated": revision}, "observedGeneration": generation}, by_alias=True, by_name=False
    )


STARTING = "Accepted=True/Valid Ready=False/Creating Reconciling=True/Creating Stalled=False/Moving"
LOADING = "Accepted=True/Valid Ready=False/ModelLoading Reconciling=True/ModelLoading Stalled=False/Moving"
CRASHING = "Accepted=True/Valid Ready=False/CrashLooping Reconciling=True/CrashLooping Stalled=False/Moving"
READY = "Accepted=True/Valid Ready=True/ReplicasReady Reconciling=False/Settled Stalled=False/Settled"
SUSPENDED = "Accepted=True/Valid Ready=True/Suspended Reconciling=False/Settled Stalled=False/Settled"
ROLLING = "Accepted=True/Valid Ready=True/ReplicasReady Reconciling=True/RollingOut Stalled=False/Moving"
STUCK = "Accepted=True/Valid Ready=False/ImagePull Reconciling=False/Stalled Stalled=True/ImagePull"
REFUSED = "Accepted=False/InvalidSpec Ready=True/ReplicasReady Reconciling=False/Stalled Stalled=True/InvalidSpec"
DIFFERS = "ParallelismVerified=False/DegreeMismatch"
AS_PLANNED = "ParallelismVerified=True/AsPlanned"
NEVER = "Accepted=False/InvalidSpec Ready=False/NotAccepted Reconciling=False/Stalled Stalled=True/InvalidSpec"


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        pytest.param("", STARTING, [], id="that a new object is valid and not ready yet is no news"),
        pytest.param("", NEVER, ["Warning Accept InvalidSpec"], id="a new object is refused, once"),
        pytest.param("", STUCK, ["Warning Reconcile ImagePull"], id="a new object is stuck at once"),
        pytest.param(READY, f"{READY} {DIFFERS}", ["Warning Verify DegreeMismatch"], id="it answers, and runs something else than planned"),
        pytest.param(f"{READY} {DIFFERS}", f"{READY} {DIFFERS}", [], id="it still does"),
        pytest.param(f"{READY} {DIFFERS}", f"{READY} {AS_PLANNED}", [], id="it was put right"),
        pytest.param("", SUSPENDED, ["Normal Serve Suspended"], id="a new object is suspended"),
        pytest.param(STARTING, STARTING, [], id="nothing changed"),
        pytest.param(STARTING, LOADING, [], id="a start goes on"),
        pytest.param(LOADING, CRASHING, [], id="a start fails for the first time"),
        pytest.param(LOADING, READY, ["Normal Serve ReplicasReady"], id="it answers"),
        pytest.param(READY, ROLLING, [], id="a change rolls out while all answer"),
        pytest.param(READY, LOADING, ["Normal Serve ModelLoading"], id="a change rolls out within the devices"),
        pytest.param(READY, CRASHING, ["Warning Serve CrashLooping"], id="it breaks"),
        pytest.param(READY, SUSPENDED, [], id="it is suspended, and as ready as asked"),
        pytest.param(CRASHING, STUCK, ["Warning Reconcile ImagePull"], id="it is stuck"),
        pytest.param(STUCK, LOADING, ["Normal Reconcile NotStalled"], id="it moves again"),
        pytest.param(STUCK, READY, ["Normal Serve ReplicasReady", "Normal Reconcile NotStalled"], id="it comes up late"),
        pytest.param(READY, REFUSED, ["Warning Accept InvalidSpec"], id="a change is refused, once"),
        pytest.param(REFUSED, READY, ["Normal Accept Valid"], id="the good spec is back"),
        pytest.param(STUCK, REFUSED, ["Warning Accept InvalidSpec", "Normal Serve ReplicasReady"], id="refused while it comes up"),
        pytest.param(REFUSED, NEVER, ["Warning Serve NotAccepted"], id="what ran goes down while a change is refused"),
        pytest.param(REFUSED, STUCK, ["Normal Accept Valid", "Warning Serve ImagePull"], id="accepted, and stuck for another cause"),
    ],
)
def test_flips_are_told(before: str, after: str, told: list[str]) -> None:
    events = transitions(a_status(before), a_status(after))
    assert [f"{event.type} {event.action} {event.reason}" for event in events] == told
    assert all(event.note.endswith(".") for event in events)


OLD_TEXTS = {"config.properties": "a=1\nb=2\n", "ds-config.json": "{}\n", "model-config.yaml": "batchSize: 8\n"}
NEW_TEXTS = {"config.properties": "a=1\nb=2\n", "model-config.yaml": "batchSize: 16\n"}


def test_a_new_revision_tells_what_changed_in_the_files() -> None:
    events = transitions(a_status(READY, revision="aaa"), a_status(ROLLING, revision="bbb"), OLD_TEXTS, NEW_TEXTS)
    note = """\
Rendered files changed from revision aaa to bbb:
--- a/ds-config.json
+++ b/ds-config.json
@@ -1 +0,0 @@
-{}
--- a/model-config.yaml
+++ b/model-config.yaml
@@ -1 +1 @@
-batchSize: 8
+batchSize: 16"""
    assert events == [Told("Normal", "RevisionChanged", "Render", note)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("", "bbb", id="the first revision"),
        pytest.param("bbb", "bbb", id="the same revision"),
        pytest.param("bbb", "", id="a status that lost it"),
    ],
)
def test_no_change_of_files_is_no_event(before: str, after: str) -> None:
    assert transitions(a_status(READY, revision=before), a_status(READY, revision=after), OLD_TEXTS, NEW_TEXTS) == []


def test_a_revision_whose_texts_are_gone_is_told_without_them() -> None:
    (event,) = transitions(a_status(READY, revision="aaa"), a_status(READY, revision="bbb"), None, NEW_TEXTS)
    assert event.note == "Rendered files changed from revision aaa to bbb; the texts of one of them are not kept any more."


@pytest.mark.parametrize(
    ("line", "count"),
    [
        pytest.param("x" * 60, 40, id="many lines"),
        pytest.param("ü" * 60, 12, id="few enough in characters and too many in bytes"),
        pytest.param("y" * 2000, 2, id="a line that is too long by itself"),
    ],
)
def test_a_long_difference_is_cut_between_lines_with_how_much_is_missing(line: str, count: int) -> None:
    texts = {"f": f"{line}\n" * count}
    (event,) = transitions(a_status(READY, revision="aaa"), a_status(READY, revision="bbb"), {"f": ""}, texts)
    lines = event.note.split("\n")
    assert len(event.note.encode()) <= NOTE_LIMIT_BYTES
    assert lines[:4] == ["Rendered files changed from revision aaa to bbb:", "--- a/f", "+++ b/f", f"@@ -0,0 +1,{count} @@"]
    assert all(entry == f"+{line}" for entry in lines[4:-1])
    assert lines[-1] == f"... {count - len(lines[4:-1])} more lines: compare the ConfigMaps of aaa and bbb"


def test_a_long_message_is_cut_within_the_limit() -> None:
    long = a_status(CRASHING).model_copy()
    conditions = [entry.model_copy(update={"message": "ü" * 1000}) for entry in long.conditions]
    (event,) = transitions(a_status(READY), long.model_copy(update={"conditions": conditions}))
    assert event.note.endswith("ü...")
    assert NOTE_LIMIT_BYTES - 2 <= len(event.note.encode()) <= NOTE_LIMIT_BYTES


def test_an_event_is_one_that_kubernetes_knows() -> None:
    document = event_document(OWNER.metadata, TOLD, NOW, "largemodel.dev/operator", "pod-1" * 50)
    assert document == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": document["metadata"]["name"], "namespace": "prod"},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "type": "Warning",
        "reason": "CrashLooping",
        "action": "Serve",
        "note": "1 of 2 replicas: it ended.",
        "regarding": {
            "apiVersion": "largemodel.dev/v1alpha1",
            "kind": "LargeModelDeployment",
            "namespace": "prod",
            "name": "llama",
            "uid": "u1",
        },
        "reportingController": "largemodel.dev/operator",
        "reportingInstance": ("pod-1" * 50)[:128],
    }
    assert document["metadata"]["name"].startswith("llama.")
    kubernetes_validate.validate(document, "1.33", strict=True)


def test_a_series_keeps_name_and_time_and_counts() -> None:
    first = event_document(OWNER.metadata, TOLD, NOW, "c", "i")
    later = event_document(OWNER.metadata, TOLD, "2026-01-01T00:05:00Z", "c", "i", Occurrence(NOW, "2026-01-01T00:05:00Z", 2))
    assert later == {**first, "series": {"count": 2, "lastObservedTime": "2026-01-01T00:05:00.000000Z"}}
    kubernetes_validate.validate(later, "1.33", strict=True)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"told": Told("Warning", "CrashLooping", "Serve", "2 of 2")}, id="another note"),
        pytest.param({"now": "2026-01-01T00:00:01Z"}, id="another time"),
        pytest.param({"owner": OWNER.metadata.model_copy(update={"uid": "u2"})}, id="another uid"),
    ],
)
def test_events_that_differ_have_names_that_differ(other: dict[str, Any]) -> None:
    given: dict[str, Any] = {"owner": OWNER.metadata, "told": TOLD, "now": NOW, "controller": "c", "instance": "i"}
    one, two = event_document(**given), event_document(**{**given, **other})
    assert one["metadata"]["name"] != two["metadata"]["name"]


def test_times_of_any_zone_are_told_in_utc() -> None:
    assert micro_time("2026-01-01T02:00:00.5+02:00") == "2026-01-01T00:00:00.500000Z"


def at(minute: int, second: int = 0) -> str:
    return f"2026-01-01T00:{minute:02}:{second:02}Z"


def test_repetitions_within_ten_minutes_of_the_last_are_counted() -> None:
    aggregator = Aggregator()
    counted = [aggregator.count("u1", TOLD, at(minute)) for minute in (0, 9, 19, 20)]
    assert counted == [Occurrence(at(0), at(minute), count) for count, minute in enumerate((0, 9, 19, 20), 1)]


def test_what_comes_later_is_a_new_event() -> None:
    aggregator = Aggregator()
    aggregator.count("u1", TOLD, at(0))
    assert aggregator.count("u1", TOLD, at(10, 1)) == Occurrence(at(10, 1), at(10, 1), 1)


def test_another_object_or_note_is_counted_apart() -> None:
    aggregator = Aggregator()
    aggregator.count("u1", TOLD, at(0))
    assert aggregator.count("u2", TOLD, at(1)).count == 1
    assert aggregator.count("u1", Told("Warning", "CrashLooping", "Serve", "other"), at(1)).count == 1
    assert aggregator.count("u1", TOLD, at(2)).count == 2


def test_the_past_is_forgotten() -> None:
    aggregator = Aggregator()
    for minute in range(60):
        aggregator.count(f"u{minute}", TOLD, at(minute))
    assert len(aggregator._known) == 11
