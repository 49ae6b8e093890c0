"""What callers asked and what they have not yet been told: the one lock between the transport's thread and the engine's.

Knows nothing of models; an engine takes tickets from it and publishes tokens to it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from lmd_worker.engine.protocol import FinishReason, Progress, RequestTiming, Sampling, TokenLogprobs
from lmd_worker.errors import BadRequestError

KEPT_TIMINGS = 1000
_SLOWING = 0.2  # weight of the newest interval between two ends


@dataclass(slots=True, eq=False)
class Ticket:
    """One request as the engine runs it. `chooser` is the engine's own state for picking this request's tokens; times are monotonic."""

    request_id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    chooser: Any
    produced: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    told: int = 0
    finish_reason: FinishReason | None = None
    error: str | None = None
    cancelled: bool = False
    added: float = 0.0
    begun: float | None = None
    token_times: list[float] = field(default_factory=list)

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
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of one moment; the totals only grow."""

    running: int
    waiting: int
    prompt_tokens: int
    generation_tokens: int


class Ledger:
    """Waiting requests in order of arrival, and every request's news; all methods may be called from any thread.

    `limit` is the most requests that may be open, waiting and running together; None is no limit.
    """

    def __init__(self, limit: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._changed = threading.Condition()
        self._limit = limit
        self._clock = clock
        self._waiting: deque[Ticket] = deque()
        self._tickets: dict[str, Ticket] = {}
        self._open = 0
        self._closed: str | None = None
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._timings: deque[RequestTiming] = deque(maxlen=KEPT_TIMINGS)
        self._last_end: float | None = None
        self._seconds_between_ends = 0.0

    def add(self, ticket: Ticket) -> None:
        """Queue a request; once closed it ends at once with reason "error".

        Raises `BadRequestError`: 409 when its id is in use, 429 when too many are open, with the seconds until one of them should end.
        """
        with self._changed:
            if ticket.request_id in self._tickets:
                raise BadRequestError(f"request id {ticket.request_id} is in use; give every request its own.", status=409)
            if self._limit is not None and self._open >= self._limit:
                raise BadRequestError(
                    f"{self._open} requests are open, as many as this model takes; try again later.",
                    status=429,
                    retry_after_seconds=max(1, math.ceil(self._seconds_between_ends)),
                )
            ticket.added = self._clock()
            self._tickets[ticket.request_id] = ticket
            self._open += 1
            if self._closed is None:
                self._waiting.append(ticket)
            else:
                self._end(ticket, "error", self._closed)
            self._changed.notify_all()

    def take(self, limit: int, timeout_seconds: float) -> list[Ticket]:
        """Remove and return up to `limit` waiting tickets, oldest first; none after the timeout or when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed is not None, timeout_seconds)
            taken = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
            for ticket in taken:
                if ticket.begun is None:
                    ticket.begun = self._clock()
                    self._prompt_tokens += len(ticket.prompt)
            return taken

    def put_back(self, tickets: Sequence[Ticket]) -> None:
        """Let unfinished tickets wait again, before all others, in this order."""
        with self._changed:
            if self._closed is None:
                self._waiting.extendleft(ticket for ticket in reversed(tickets) if not ticket.over)

    def publish(self, news: Iterable[News]) -> None:
        """Tell what one turn brought; what concerns requests that are over is dropped."""
        with self._changed:
            now = self._clock()
            for item in news:
                if item.ticket.over:
                    continue
                if item.token is not None:
                    self._generation_tokens += 1
                    item.ticket.produced.append(item.token)
                    item.ticket.token_times.append(now)
                    if item.logprobs is not None:
                        item.ticket.logprobs.append(item.logprobs)
                if item.finish_reason is not None:
                    self._end(item.ticket, item.finish_reason, item.error)
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
            tokens, logprobs = tuple(ticket.produced[ticket.told :]), tuple(ticket.logprobs[ticket.told :])
            ticket.told = len(ticket.produced)
            if ticket.finish_reason is not None:
                del self._tickets[request_id]
            return Progress(tokens, ticket.finish_reason, ticket.error, logprobs)

    def cancel(self, request_id: str) -> None:
        """Forget a request, waiting or running."""
        with self._changed:
            ticket = self._tickets.pop(request_id, None)
            if ticket is None:
                return
            if not ticket.over:
                self._count_end(ticket)
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
                    self._end(ticket, "error", self._closed)
            self._waiting.clear()
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether nothing will be taken any more."""
        return self._closed is not None

    def totals(self) -> Totals:
        """Return the counts of this moment."""
        with self._changed:
            waiting = len(self._waiting)
            return Totals(self._open - waiting, waiting, self._prompt_tokens, self._generation_tokens)

    def drain_timings(self) -> list[RequestTiming]:
        """Take the timings of the requests that have ended since the last call, oldest first."""
        with self._changed:
            drained = list(self._timings)
            self._timings.clear()
            return drained

    def _has_news(self, request_id: str) -> bool:
        ticket = self._tickets.get(request_id)
        return ticket is None or ticket.finish_reason is not None or ticket.told < len(ticket.produced)

    def _end(self, ticket: Ticket, reason: FinishReason, error: str | None) -> None:
        ticket.finish_reason = reason
        ticket.error = error
        self._count_end(ticket)

    def _count_end(self, ticket: Ticket) -> None:
        self._open -= 1
        if ticket.begun is None:
            return
        now = self._clock()
        if self._last_end is not None:
            self._seconds_between_ends += _SLOWING * (now - self._last_end - self._seconds_between_ends)
        self._last_end = now
        times = ticket.token_times
        self._timings.append(
            RequestTiming(
                queue_seconds=ticket.begun - ticket.added,
                first_token_seconds=times[0] - ticket.added if times else None,
                between_tokens_seconds=tuple(later - earlier for earlier, later in pairwise(times)),
            )
        )
