"""Two statuses -> the Kubernetes Events worth telling. Pure: no clock, nothing is sent.

Told are flips of Accepted, Ready and Stalled, ranks that run something else than planned, and a new revision with what
changed in the rendered files. A status that only progresses is told by its conditions. Rendered files hold no secrets, and
nothing else of the object is quoted.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

from lmd_operator.api.status import Condition, Status
from lmd_operator.api.v1alpha1 import API_VERSION, KIND
from lmd_operator.status.causes import PASSING

NOTE_LIMIT_BYTES = 1024
"""The API server refuses longer notes."""
INSTANCE_LIMIT = 128
WINDOW = timedelta(minutes=10)
_ACTIONS = {"Accepted": "Accept", "ParallelismVerified": "Verify", "Ready": "Serve", "Stalled": "Reconcile"}


@dataclass(frozen=True, slots=True)
class Told:
    """One Event's content. `reason` is the CamelCase why, `action` what the operator was doing."""

    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    note: str


@dataclass(frozen=True, slots=True)
class Occurrence:
    """When an Event was first and last told, RFC 3339, and how often."""

    first: str
    last: str
    count: int


class Aggregator:
    """Counts repetitions, so that a flapping condition is one Event with a series and not a new object each time.

    The same content about the same object within `WINDOW` of the last time continues its series. Holds no clock and
    sends nothing; what is older than the window is forgotten whenever something is counted.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, Told], Occurrence] = {}

    def count(self, uid: str, told: Told, now: str) -> Occurrence:
        """Return the occurrence this belongs to, now included. `uid` is the object's."""
        self._forget_before(_time(now) - WINDOW)
        before = self._known.pop((uid, told), None)
        occurrence = Occurrence(before.first, now, before.count + 1) if before else Occurrence(now, now, 1)
        self._known[uid, told] = occurrence
        return occurrence

    def _forget_before(self, oldest: datetime) -> None:
        """Drop what is too old; entries are in the order in which they were last told."""
        while self._known:
            key, known = next(iter(self._known.items()))
            if _time(known.last) >= oldest:
                return
            del self._known[key]


def transitions(
    previous: Status, current: Status, old_texts: Mapping[str, str] | None = None, new_texts: Mapping[str, str] | None = None
) -> list[Told]:
    """Return what to tell, in order: acceptance, the new revision, ranks that differ, readiness, standstill.

    `old_texts` and `new_texts` are the rendered files of the two `revision.updated`, None where they are not known any more.
    """
    before: dict[str, Condition] = {condition.type: condition for condition in previous.conditions}
    after: dict[str, Condition] = {condition.type: condition for condition in current.conditions}
    flipped = {name for name, condition in after.items() if name not in before or before[name].status != condition.status}
    told: list[Told] = []
    # that a new object is valid is no news
    if "Accepted" in flipped and ("Accepted" in before or after["Accepted"].status != "True"):
        told.append(_accepted(after["Accepted"]))
    told += _revision(previous, current, old_texts, new_texts)
    if "ParallelismVerified" in flipped and after["ParallelismVerified"].status == "False":
        told.append(_differing(after["ParallelismVerified"]))
    # that a new object is not ready yet is no news
    if "Ready" in flipped and ("Ready" in before or after["Ready"].status == "True"):
        told.append(_ready(after["Ready"]))
    # a refused spec is stalled too, and ends to be with its acceptance: one Event says so
    is_news = after["Stalled"].status == "True" or ("Stalled" in before and "Accepted" not in flipped)
    if "Stalled" in flipped and is_news and after["Accepted"].status == "True":
        told.append(_stalled(after["Stalled"]))
    return told


class Regarding(Protocol):
    """The object an Event is about."""

    @property
    def namespace(self) -> str:
        """Its namespace."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def uid(self) -> str:
        """Its identity."""


def event_document(
    owner: Regarding, told: Told, now: str, controller: str, instance: str, occurrence: Occurrence | None = None
) -> dict[str, Any]:
    """Return the events.k8s.io/v1 Event.

    Without an occurrence, or with the first, it is a new Event of one moment. From the second on it has the first one's
    name and `eventTime`, and a `series` with the count and the last time: send it as a merge patch of `series` alone,
    because the API server takes no other change; when it answers 404 (Events live an hour), create the document instead.
    """
    found = occurrence or Occurrence(now, now, 1)
    identity = "\0".join([owner.uid, told.type, told.reason, told.action, told.note, found.first])
    document: dict[str, Any] = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "name": f"{owner.name}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}",
            "namespace": owner.namespace,
        },
        "eventTime": micro_time(found.first),
        "type": told.type,
        "reason": told.reason,
        "action": told.action,
        "note": told.note,
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": owner.namespace,
            "name": owner.name,
            "uid": owner.uid,
        },
        "reportingController": controller,
        "reportingInstance": instance[:INSTANCE_LIMIT],
    }
    if found.count > 1:
        document["series"] = {"count": found.count, "lastObservedTime": micro_time(found.last)}
    return document


def diff(old_texts: Mapping[str, str], new_texts: Mapping[str, str]) -> list[str]:
    """Return the unified diff of the files, without context: lines of the files that changed, by file name."""
    lines: list[str] = []
    for name in sorted(old_texts.keys() | new_texts.keys()):
        old, new = old_texts.get(name, "").splitlines(), new_texts.get(name, "").splitlines()
        lines += difflib.unified_diff(old, new, f"a/{name}", f"b/{name}", lineterm="", n=0)
    return lines


def cut(lines: list[str], where: str) -> str:
    """Return the lines as a note; what does not fit is replaced by how many lines are missing and where they are."""
    whole = "\n".join(lines)
    if len(whole.encode()) <= NOTE_LIMIT_BYTES:
        return whole
    kept: list[str] = []
    for line in lines:
        marker = f"... {len(lines) - len(kept) - 1} more lines: {where}"
        if len("\n".join([*kept, line, marker]).encode()) > NOTE_LIMIT_BYTES:
            break
        kept.append(line)
    return "\n".join([*kept, f"... {len(lines) - len(kept)} more lines: {where}"])


def micro_time(text: str) -> str:
    """Return an RFC 3339 time with microseconds in UTC, as `eventTime` must be written."""
    return f"{_time(text):%Y-%m-%dT%H:%M:%S.%fZ}"


def _accepted(condition: Condition) -> Told:
    return Told("Normal" if condition.status == "True" else "Warning", condition.reason, _ACTIONS["Accepted"], _note(condition.message))


def _ready(condition: Condition) -> Told:
    is_normal = condition.status == "True" or condition.reason in PASSING
    return Told("Normal" if is_normal else "Warning", condition.reason, _ACTIONS["Ready"], _note(condition.message))


def _differing(condition: Condition) -> Told:
    return Told("Warning", condition.reason, _ACTIONS["ParallelismVerified"], _note(condition.message))


def _stalled(condition: Condition) -> Told:
    if condition.status == "True":
        return Told("Warning", condition.reason, _ACTIONS["Stalled"], _note(condition.message))
    return Told("Normal", "NotStalled", _ACTIONS["Stalled"], _note(condition.message))


def _revision(
    previous: Status, current: Status, old_texts: Mapping[str, str] | None, new_texts: Mapping[str, str] | None
) -> Iterator[Told]:
    old, new = previous.revision.updated, current.revision.updated
    if not old or not new or old == new:
        return
    first = f"Rendered files changed from revision {old} to {new}"
    if old_texts is None or new_texts is None:
        yield Told("Normal", "RevisionChanged", "Render", f"{first}; the texts of one of them are not kept any more.")
        return
    where = f"compare the ConfigMaps of {old} and {new}"
    yield Told("Normal", "RevisionChanged", "Render", _note(cut([f"{first}:", *diff(old_texts, new_texts)], where)))


def _note(message: str) -> str:
    raw = message.encode()
    marker = "..."
    return message if len(raw) <= NOTE_LIMIT_BYTES else raw[: NOTE_LIMIT_BYTES - len(marker)].decode(errors="ignore") + marker


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
