"""What may go wrong with a request, and when."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from lmd_plane.faults.requests import Match, Request


@dataclass(frozen=True)
class Delay:
    """Forward it, but later."""

    seconds: float


@dataclass(frozen=True)
class Drop:
    """Reset the connection; the server never sees it."""


@dataclass(frozen=True)
class LoseResponse:
    """Let the server do it, then reset the connection: the client cannot know."""


@dataclass(frozen=True)
class Reply:
    """Answer in the server's place, which never sees it."""

    code: int
    reason: str = ""
    message: str = "a fault that was asked for"
    retry_after_seconds: int | None = None


@dataclass(frozen=True)
class CutWatch:
    """Reset a watch after so many events."""

    after_events: int = 0


@dataclass(frozen=True)
class FreezeWatch:
    """Say nothing more on a watch after so many events, and keep it open."""

    after_events: int = 0


@dataclass(frozen=True)
class FailWatch:
    """End a watch with an ERROR event after so many events: 410 Expired, 500 InternalError."""

    code: int
    after_events: int = 0


@dataclass(frozen=True)
class DropEvents:
    """Swallow watch events: all, or of one type, or about one object, or only the nth of those."""

    type: str | None = None
    name: str | None = None
    nth: int | None = None


@dataclass(frozen=True)
class DelayEvents:
    """Pass watch events on later; what follows waits with them."""

    seconds: float
    type: str | None = None
    name: str | None = None
    nth: int | None = None


Action = Delay | Drop | LoseResponse | Reply | CutWatch | FreezeWatch | FailWatch | DropEvents | DelayEvents
EventAction = DropEvents | DelayEvents
WatchAction = CutWatch | FreezeWatch | FailWatch

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@dataclass
class Rule:
    """An action for the requests that match: each of them, only the nth, or only the first few."""

    match: Match
    action: Action
    nth: int | None = None
    times: int | None = None
    seen: int = 0
    """Requests that matched so far."""
    fired: int = 0
    """Requests, or events, that the action was done to."""
    _events_seen: int = field(default=0, repr=False)

    def fires(self, request: Request) -> bool:
        """Whether the action is due for this request; counts it."""
        if isinstance(self.action, DropEvents | DelayEvents) or not self.match.of(request):
            return False
        if isinstance(self.action, CutWatch | FreezeWatch | FailWatch) and request.verb != "watch":
            return False
        self.seen += 1
        return self._due(self.seen, self.nth)

    def fires_for_event(self, request: Request, event: dict[str, Any]) -> bool:
        """Whether the action is due for this event of a watch; counts it."""
        action = self.action
        if not isinstance(action, DropEvents | DelayEvents) or not self.match.of(request):
            return False
        name = event.get("object", {}).get("metadata", {}).get("name")
        if action.type not in (None, event.get("type")) or action.name not in (None, name):
            return False
        self._events_seen += 1
        return self._due(self._events_seen, action.nth)

    def _due(self, count: int, nth: int | None) -> bool:
        due = (nth is None or nth == count) and (self.times is None or self.fired < self.times)
        self.fired += due
        return due


def status_object(
    code: int, reason: str = "", message: str = "a fault that was asked for", retry_after: int | None = None
) -> dict[str, Any]:
    """Return a refusal as the API server words it."""
    details = {"details": {"retryAfterSeconds": retry_after}} if retry_after is not None else {}
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason or _REASONS.get(code, ""),
        "code": code,
        **details,
    }


def error_event(code: int) -> bytes:
    """Return the watch event by which the API server ends a watch that it cannot continue."""
    return json.dumps({"type": "ERROR", "object": status_object(code)}).encode() + b"\n"
