"""Who computes what in the next turn, decided on every rank alike: transformers' scheduler over the paged cache.

Requests stand in places, 0 to concurrency - 1, known to all ranks. The scheduler gives running requests their one token first and
what is left of the turn's tokens to prompts, in the order they came, cutting long ones into chunks. It sees only what rank 0 tells
every rank in the same order, so that all come to the same batch; each rank has pages of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.continuous_batching.requests import RequestState
from transformers.generation.continuous_batching.scheduler import FIFOScheduler

from lmd_worker.engine.paged_attention import Layout, Span, layout
from lmd_worker.engine.pages import PAGE_TOKENS, Pages

_UNBOUNDED = 2**62  # transformers bounds a turn's reading by an index tensor, which this engine does not have


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that begins: its place and what it already has, its prompt."""

    place: int
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Batch:
    """One turn's row of tokens.

    `tokens` and `positions`: [1, tokens] int64 on the device. `asking`: places that get their next token this turn, in the order of
    `last`, [asking] int64, the places in the row whose scores say it. `prompt_tokens` are those that are not an answer's last token.
    `scheduled` is what transformers' scheduler said.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    asking: Sequence[int]
    last: torch.Tensor
    layout: Layout
    prompt_tokens: int
    scheduled: Sequence[Any]

    @property
    def width(self) -> int:
        """Tokens in the row."""
        return self.tokens.shape[1]


class Schedule:
    """The running requests of one rank. All ranks make the same calls with the same values."""

    def __init__(self, pages: Pages, device: torch.device) -> None:
        self._pages = pages
        self._device = device
        self._scheduler = FIFOScheduler(pages.cache, safety_margin=0.0, max_requests_per_batch=pages.shape.concurrency)

    @property
    def pages(self) -> Pages:
        """The cache."""
        return self._pages

    def begin(self, arrivals: Sequence[Arrival]) -> None:
        """Let requests in."""
        for arrival in arrivals:
            self._scheduler.add_waiting_request(RequestState(str(arrival.place), list(arrival.tokens), max_new_tokens=None))

    def go_on(self, tokens: Mapping[int, int]) -> None:
        """Append each asking place's chosen token."""
        for place, token in tokens.items():
            self._scheduler.active_requests[str(place)].update_and_check_completion(token, None)

    def leave(self, places: Sequence[int]) -> None:
        """Forget requests, waiting or running, and free their pages."""
        for place in places:
            self._scheduler.set_request_cancellation(str(place))
            self._scheduler.clear_cancelled_requests()

    @property
    def answering(self) -> int:
        """Requests that will get a token in the next turn without any of their prompt."""
        return sum(not state.remaining_prefill_tokens for state in self._scheduler.active_requests.values())

    def plan(self, prompt_tokens: int) -> Batch | None:
        """Return the next turn, with at most so many tokens of prompts; None when nobody is here. Takes the pages it needs."""
        # each request begins at most one page that its tokens do not fill
        self._pages.make_room(prompt_tokens // PAGE_TOKENS + self._pages.shape.concurrency)
        scheduled, _, _, _ = self._scheduler.schedule_batch(self.answering + prompt_tokens, _UNBOUNDED)
        if scheduled is None:
            raise RuntimeError("the paged cache is full, although it holds every request's context")
        return self._batch(scheduled) if scheduled else None

    def note_computed(self, batch: Batch) -> None:
        """Offer the pages that a turn has filled to requests that begin alike. To be called before anything else happens to the turn's."""
        for item in batch.scheduled:
            self._pages.cache.mark_complete_blocks(item.state, item.complete_blocks)

    def _batch(self, scheduled: Sequence[Any]) -> Batch:
        row: list[int] = []
        positions: list[int] = []
        spans, asking, last = [], [], []
        prompt_tokens = 0
        for item in scheduled:
            state, count = item.state, item.query_length
            spans.append(Span(state.position_offset, count, self._pages.table(state.request_id)))
            row.extend(state.tokens_to_process)
            positions.extend(range(state.position_offset, state.position_offset + count))
            prompt_tokens += count if state.position_offset < len(state.initial_tokens) else 0
            state.position_offset += count
            if item.has_new_token:
                asking.append(int(state.request_id))
                last.append(len(row) - 1)
        return Batch(
            torch.tensor([row], device=self._device),
            torch.tensor([positions], device=self._device),
            asking,
            torch.tensor(last, dtype=torch.int64, device=self._device),
            layout(spans, self._pages, self._device),
            prompt_tokens,
            scheduled,
        )
