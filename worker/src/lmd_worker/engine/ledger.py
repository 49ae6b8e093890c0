"""What callers asked and what they have not yet been told: the one lock between the transport's thread and the engine's.

Knows nothing of models; an engine takes tickets from it and publishes tokens to it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmd_worker.engine.protocol import FinishReason, Progress, Sampling
from lmd_worker.errors import BadRequestError


@dataclass(slots=True, eq=False)
class Ticket:
    """One request as the engine runs it. `chooser` is the engine's own state for picking this request's tokens."""

    request_id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    chooser: Any
    produced: list[int] = field(default_factory=list)
    told: int = 0
    finish_reason: FinishReason | None = None
    error: str | None = None
    cancelled: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing more may be produced for it."""
        return self.cancelled or self.finish_reason is not None

    @property
    def remaining(self) -> int:
        """Tokens it may still get."""
        return self.sampling.max_tokens - len(self.produced)


@dataclass(frozen=True, slots=True)
class News:
    """One token of one ticket, or the reason why it ends, or both."""

    ticket: Ticket
    token: int | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None


class Ledger:
    """Waiting requests in order of arrival, and every request's news; all methods may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._tickets: dict[str, Ticket] = {}
        self._closed: str | None = None

    def add(self, ticket: Ticket) -> None:
        """Queue a request; once closed it ends at once with reason "error". Raises `BadRequestError` when its id is in use."""
        with self._changed:
            if ticket.request_id in self._tickets:
                raise BadRequestError(f"request id {ticket.request_id} is in use; give every request its own.", status=409)
            self._tickets[ticket.request_id] = ticket
            if self._closed is None:
                self._waiting.append(ticket)
            else:
                _end(ticket, "error", self._closed)
            self._changed.notify_all()

    def take(self, limit: int, timeout_seconds: float) -> list[Ticket]:
        """Remove and return up to `limit` waiting tickets, oldest first; none after the timeout or when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed is not None, timeout_seconds)
            return [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]

    def put_back(self, tickets: Sequence[Ticket]) -> None:
        """Let unfinished tickets wait again, before all others, in this order."""
        with self._changed:
            if self._closed is None:
                self._waiting.extendleft(ticket for ticket in reversed(tickets) if not ticket.over)

    def publish(self, news: Iterable[News]) -> None:
        """Tell what one turn brought; what concerns requests that are over is dropped."""
        with self._changed:
            for item in news:
                if item.ticket.over:
                    continue
                if item.token is not None:
                    item.ticket.produced.append(item.token)
                if item.finish_reason is not None:
                    _end(item.ticket, item.finish_reason, item.error)
            self._changed.notify_all()

    def wait(self, request_ids: Iterable[str], timeout_seconds: float) -> None:
        """Return when any of these has news or is not known, or after the timeout."""
        ids = tuple(request_ids)
        with self._changed:
            self._changed.wait_for(lambda: any(self._has_news(request_id) for request_id in ids), timeout_seconds)

    def progress(self, request_id: str) -> Progress:
        """Take the news of one request and forget it once it has ended. An unknown id has been cancelled."""
        with self._changed:
            ticket = self._tickets.get(request_id)
            if ticket is None:
                return Progress(finish_reason="cancelled")
            tokens = tuple(ticket.produced[ticket.told :])
            ticket.told = len(ticket.produced)
            if ticket.finish_reason is not None:
                del self._tickets[request_id]
            return Progress(tokens, ticket.finish_reason, ticket.error)

    def cancel(self, request_id: str) -> None:
        """Forget a request, waiting or running."""
        with self._changed:
            ticket = self._tickets.pop(request_id, None)
            if ticket is None:
                return
            ticket.cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            self._changed.notify_all()

    def close(self, sentence: str) -> None:
        """End everything, now and from now on, with reason "error" and this sentence; the first one stays."""
        with self._changed:
            if self._closed is None:
                self._closed = sentence
            for ticket in self._tickets.values():
                if not ticket.over:
                    _end(ticket, "error", self._closed)
            self._waiting.clear()
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether nothing will be taken any more."""
        return self._closed is not None

    def _has_news(self, request_id: str) -> bool:
        ticket = self._tickets.get(request_id)
        return ticket is None or ticket.finish_reason is not None or ticket.told < len(ticket.produced)


def _end(ticket: Ticket, reason: FinishReason, error: str | None) -> None:
    ticket.finish_reason = reason
    ticket.error = error
