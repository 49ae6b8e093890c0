"""ContinuousEngine: all running requests decoded together, a token each a turn; requests come and go at every turn.

A thread on every rank runs the loop. A turn: rank 0 tells the others which tokens it chose last, who has ended, who begins and how
much of prompts may be read; all ranks settle that, plan the same batch and compute it; rank 0 picks each request's next token and
tells its caller. transformers schedules, keeps the cache's pages and computes the model; the loop, the attention over pages and the
choice of tokens are ours.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from lmd_worker.engine import paged_attention
from lmd_worker.engine.ledger import Ticket
from lmd_worker.engine.messages import Turn, head_length, pack, tail_length, unpack
from lmd_worker.engine.pace import Pace
from lmd_worker.engine.pages import Pages
from lmd_worker.engine.running import HEARTBEAT_SECONDS, RunningEngine, news_of
from lmd_worker.engine.sampling import choose
from lmd_worker.engine.schedule import Arrival, Batch, Schedule
from lmd_worker.ranks import Group


class ContinuousEngine(RunningEngine):
    """An `Engine` over a model whose attention goes through transformers' attention interface, with `pages` as its cache."""

    def __init__(self, model: Any, group: Group, pages: Pages, **limits: Any) -> None:
        """`limits` are those of `RunningEngine`. From now on the model computes with pages only."""
        super().__init__(group, **limits)
        self._core = Core(model, Schedule(pages, group.device))
        self._pages = pages
        self._pace = Pace()
        self._running: dict[int, Ticket] = {}
        self._told: Mapping[int, int] = {}
        self._woken = 0.0

    def _lead(self) -> None:
        while True:
            self._beat()
            leaving = self._leaving()
            chosen = {place: token for place, token in self._told.items() if place in self._running}
            self._core.settle(Turn(chosen, leaving))
            arrivals = self._arrivals()
            if self._ledger.closed:
                self._send(Turn(chosen, leaving, stop=True))
                return
            self._core.schedule.begin(arrivals)
            answering = self._core.schedule.answering
            prompt_tokens = self._pace.chunk(answering, len(self._running) - answering)
            batch = self._core.schedule.plan(prompt_tokens)
            self._send(Turn(chosen, leaving, arrivals, prompt_tokens, batch.width if batch else 0))
            self._told = {}
            if batch is not None:
                self._told = self._decide(batch, self._core.scores(batch))
                seconds = time.monotonic() - self._woken
                self._pace.learn(seconds, answering, batch.prompt_tokens)
                self._count_turn(seconds)

    def _follow(self) -> None:
        concurrency = self._concurrency
        while True:
            head = torch.zeros(head_length(concurrency), dtype=torch.int64)
            self._group.broadcast(head)
            self._beat()
            tail = torch.zeros(tail_length(head), dtype=torch.int64)
            if tail.numel():
                self._group.broadcast(tail)
            turn = unpack(head, tail, concurrency)
            self._core.settle(turn)
            if turn.stop:
                return
            batch = self._core.take_part(turn)
            if batch is not None:
                self._core.scores(batch)

    def _send(self, turn: Turn) -> None:
        head, tail = pack(turn, self._concurrency)
        self._group.broadcast(head)
        if tail.numel():
            self._group.broadcast(tail)

    def _leaving(self) -> list[int]:
        """Let go of the requests that have ended or were cancelled; return their places."""
        leaving = [place for place, ticket in self._running.items() if ticket.over]
        for place in leaving:
            del self._running[place]
        return leaving

    def _arrivals(self) -> list[Arrival]:
        """Take waiting requests into free places; wait for one while nobody runs."""
        free = [place for place in range(self._concurrency) if place not in self._running]
        tickets = self._ledger.take(len(free), 0.0 if self._running else HEARTBEAT_SECONDS)
        self._woken = time.monotonic()
        beginning = dict(zip(free, tickets, strict=False))
        self._running.update(beginning)
        return [Arrival(place, ticket.prompt) for place, ticket in beginning.items()]

    def _decide(self, batch: Batch, scores: torch.Tensor) -> dict[int, int]:
        """Pick every asking request's token and tell the callers; return the tokens by place."""
        tickets = [self._running[place] for place in batch.asking]
        if not tickets:
            return {}
        choices = choose(scores, [None if ticket.over else ticket.chooser for ticket in tickets])
        self._ledger.publish([news_of(ticket, choice) for ticket, choice in zip(tickets, choices, strict=True)])
        return {place: choice.token for place, choice in zip(batch.asking, choices, strict=True)}

    def _cache_blocks(self) -> tuple[int | None, int | None]:
        return self._pages.used, self._pages.total


class Core:
    """What every rank does in a turn: settle the last, plan the next, compute it."""

    def __init__(self, model: Any, schedule: Schedule) -> None:
        """From now on the model computes with pages only. Raises `ValueError` when its attention cannot be exchanged."""
        paged_attention.register()
        model.set_attn_implementation(paged_attention.IMPLEMENTATION)
        self.schedule = schedule
        self._model = model
        self._keeps = bool(model._supports_logits_to_keep())

    def settle(self, turn: Turn) -> None:
        """Take in the last turn's tokens and let those go that have ended."""
        self.schedule.go_on(turn.chosen)
        self.schedule.leave(turn.leaving)

    def take_part(self, turn: Turn) -> Batch | None:
        """Let in and plan as rank 0 did. Raises `RuntimeError` when that gives another batch than rank 0's."""
        self.schedule.begin(turn.arrivals)
        batch = self.schedule.plan(turn.prompt_tokens)
        if (batch.width if batch else 0) != turn.width:
            raise RuntimeError(f"this rank planned {batch.width if batch else 0} tokens and rank 0 {turn.width}")
        return batch

    def scores(self, batch: Batch) -> torch.Tensor:
        """Compute a batch; return what the asking requests' next tokens score: [asking, vocabulary] float32."""
        wanted = batch.last if batch.asking else batch.last.new_tensor([batch.width - 1])  # no rank ever reduces an empty tensor
        keep = {"logits_to_keep": wanted} if self._keeps else {}
        logits: torch.Tensor = self._model(
            input_ids=batch.tokens, position_ids=batch.positions, use_cache=False, paged_layout=batch.layout, **keep
        ).logits[0]
        self.schedule.note_computed(batch)
        return logits[: len(batch.asking)].float() if keep else logits[batch.last].float()
