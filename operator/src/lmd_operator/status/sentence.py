"""The state of an object in one sentence: why it is not Ready, and what to do. Pure."""

from __future__ import annotations

from lmd_operator.api.status import Condition, ConditionType, Status

_GOES_ON = "There is nothing to do: it goes on by itself"
_REMEDIES = {
    "Creating": _GOES_ON,
    "Progressing": _GOES_ON,
    "RollingOut": _GOES_ON,
    "ModelLoading": _GOES_ON,
    "Terminating": _GOES_ON,
    "Suspended": "Set spec.suspend to false to start it",
    "ScaledToZero": "Set spec.replicas to 1 or more to start it",
}
"""What to do about reasons whose messages only say what is so; all other messages name their own remedy."""

_OBSTACLES: tuple[tuple[ConditionType, str, str], ...] = (
    ("Accepted", "True", "is refused"),
    ("Planned", "True", "has no plan"),
    ("Stalled", "False", "is stuck"),
)
"""Conditions that say more than Ready, the gravest first; what they are when all is well, and the words when not."""


def sentence(name: str, status: Status, generation: int) -> str:
    """Return why the object is not Ready and what to do, or that it is."""
    said = {condition.type: condition for condition in status.conditions}
    if not said:
        return f"{name} has no status yet: check that the operator runs and looks after this namespace."
    behind = ""
    if status.observed_generation < generation:
        behind = f" The operator has not looked at the newest spec yet (generation {generation}, seen {status.observed_generation})."
    for kind, wanted, words in _OBSTACLES:
        condition = said.get(kind)
        if condition is not None and condition.status not in (wanted, "Unknown"):
            return f"{name} {words}{_because(condition)}{behind}"
    ready = said.get("Ready")
    if ready is None or ready.status != "True":
        return f"{name} is not Ready{_because(ready) if ready else '.'}{behind}"
    verified = said.get("ParallelismVerified")
    if verified is not None and verified.status == "False":
        return f"{name} is Ready, but does not run what was planned{_because(verified)}{behind}"
    return f"{name} is Ready{_because(ready)}{behind}"


def _because(condition: Condition) -> str:
    message = condition.message.rstrip(". ")
    remedy = _REMEDIES.get(condition.reason)
    return f" ({condition.reason})" + (f": {message}." if message else ".") + (f" {remedy}." if remedy else "")
