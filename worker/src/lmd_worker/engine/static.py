"""StaticEngine: one batch at a time through the library's own `generate`, whatever way the model is cut.

A thread on every rank runs the loop. Rank 0 takes waiting requests as one batch, tells the others its tokens, and all call
`generate`; who comes later waits for the next batch. A batch never grows past the context: one that would (a long prompt beside a
long answer) stops there, and its unfinished requests go on in the next batch with what they have as their prompt. So the cache is
at most concurrency x context tokens, and no position table is overrun by rows that ended long ago.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from lmd_worker.engine.ledger import Ticket
from lmd_worker.engine.running import HEARTBEAT_SECONDS, RunningEngine, news_of
from lmd_worker.engine.sampling import choose
from lmd_worker.engine.turns import DealtVerdict, Decide, Done, Verdict
from lmd_worker.ranks import Group

_PAD = 0  # any token id: padding is masked, and what a finished row is fed concerns nobody
_IDLE, _BATCH, _STOP = 0, 1, 2

log = logging.getLogger(__name__)


class StaticEngine(RunningEngine):
    """An `Engine` over a transformers causal language model; the same code with and without a process group."""

    def __init__(self, model: Any, group: Group, *, deals: bool = False, **limits: Any) -> None:
        """`limits` are those of `RunningEngine`. `deals` gives every rank rows of its own; otherwise all compute the same."""
        super().__init__(group, **limits)
        self._model = model
        self._deals = deals
        self._step_began = 0.0

    def _lead(self) -> None:
        while True:
            self._beat()
            tickets = self._ledger.take(self._concurrency, HEARTBEAT_SECONDS)
            if self._ledger.closed:
                self._group.broadcast(torch.tensor([_STOP, 0, 0, 0]))
                return
            if not tickets:
                self._group.broadcast(torch.tensor([_IDLE, 0, 0, 0]))
                continue
            rows, steps = _rows(tickets, self._context_tokens)
            self._group.broadcast(torch.tensor([_BATCH, *rows.shape, steps]))
            self._group.broadcast(rows)
            self._generate(rows, steps, lambda scores, batch=tickets: self._decide(batch, scores))  # type: ignore[misc]
            self._ledger.put_back(tickets)

    def _follow(self) -> None:
        while True:
            head = torch.zeros(4, dtype=torch.int64)
            self._group.broadcast(head)
            self._beat()
            kind, height, width, steps = head.tolist()
            if kind == _STOP:
                return
            if kind == _BATCH:
                rows = torch.zeros(height, width, dtype=torch.int64)
                self._group.broadcast(rows)
                self._generate(rows, steps, None)

    def _generate(self, rows: torch.Tensor, steps: int, decide: Decide | None) -> None:
        """Run one batch for at most `steps` tokens. `rows`: [requests, 1 + width] int64 on the CPU, as `_rows` makes them."""
        started = self._step_began = time.monotonic()
        count = rows.shape[0]
        verdict = Verdict(self._group, count, decide, self._beat)
        if self._deals:
            each = -(-count // self._group.size)
            rows = _own_rows(rows, each, self._group.rank)
            verdict = DealtVerdict(self._group, count, each, decide, self._beat)
        lengths, tokens = rows[:, :1], rows[:, 1:]
        width = tokens.shape[1]
        mask = (torch.arange(width) >= width - lengths).to(torch.int64)
        plain = GenerationConfig(max_new_tokens=steps, do_sample=False, num_beams=1, pad_token_id=_PAD)  # type: ignore[no-untyped-call]
        made = self._model.generate(
            input_ids=tokens.to(self._group.device),
            attention_mask=mask.to(self._group.device),
            generation_config=plain,
            logits_processor=LogitsProcessorList([verdict]),
            stopping_criteria=StoppingCriteriaList([Done(verdict)]),
        )
        log.debug(
            "rank %d: batch ended requests=%d width=%d steps=%d seconds=%.2f",
            self._group.rank,
            count,
            width,
            made.shape[1] - width,
            time.monotonic() - started,
        )

    def _decide(self, tickets: Sequence[Ticket], scores: torch.Tensor) -> torch.Tensor:
        """Pick every running row's token, tell the callers, and return the verdict for all ranks: [2, rows] int64."""
        choices = choose(scores, [None if ticket.over else ticket.chooser for ticket in tickets])
        self._ledger.publish([news_of(ticket, choice) for ticket, choice in zip(tickets, choices, strict=True) if not ticket.over])
        over = [ticket.over for ticket in tickets]
        tokens = [_PAD if ended else choice.token for choice, ended in zip(choices, over, strict=True)]
        now = time.monotonic()
        self._count_turn(now - self._step_began)
        self._step_began = now
        return torch.tensor([tokens, [int(ended) for ended in over]])


def _own_rows(rows: torch.Tensor, each: int, rank: int) -> torch.Tensor:
    """Return this rank's rows of a batch, [each, 1 + width]; ranks that are left with fewer compute the first row again."""
    own = rows[rank * each : (rank + 1) * each]
    return torch.cat([own, rows[:1].expand(each - len(own), -1)])


def _rows(tickets: Sequence[Ticket], context_tokens: int) -> tuple[torch.Tensor, int]:
    """Return a batch, [requests, 1 + width] int64: each row's length, then its left-padded tokens; and the steps it may take."""
    known = [[*ticket.prompt, *ticket.produced] for ticket in tickets]
    width = max(map(len, known))
    rows = torch.tensor([[len(tokens), *[_PAD] * (width - len(tokens)), *tokens] for tokens in known])
    return rows, min(max(ticket.remaining for ticket in tickets), context_tokens - width)
