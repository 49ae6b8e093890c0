"""StaticEngine: one batch at a time through the library's own `generate`, whatever way the model is cut.

A thread on every rank runs the loop. Rank 0 takes waiting requests as one batch, tells the others its tokens, and all call
`generate`; who comes later waits for the next batch. A batch never grows past the context: one that would (a long prompt beside a
long answer) stops there, and its unfinished requests go on in the next batch with what they have as their prompt. So the cache is
at most concurrency x context tokens, and no position table is overrun by rows that ended long ago.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from lmd_worker.engine.ledger import Ledger, News, Ticket
from lmd_worker.engine.protocol import FinishReason, Progress, Sampling
from lmd_worker.engine.sampling import Chooser, choose
from lmd_worker.engine.turns import Decide, Done, Verdict
from lmd_worker.errors import BadRequestError
from lmd_worker.ranks import Group

HEARTBEAT_SECONDS = 0.5
"""How often an idle rank 0 speaks, so that no peer's wait for it outlives the collective timeout."""
_PAD = 0  # any token id: padding is masked, and what a finished row is fed concerns nobody
_IDLE, _BATCH, _STOP = 0, 1, 2

log = logging.getLogger(__name__)


class StaticEngine:
    """An `Engine` over a transformers causal language model; the same code with and without a process group."""

    def __init__(
        self, model: Any, group: Group, *, context_tokens: int, vocabulary_size: int, concurrency: int, stall_timeout_seconds: float
    ) -> None:
        self._model = model
        self._group = group
        self._context_tokens = context_tokens
        self._vocabulary_size = vocabulary_size
        self._concurrency = concurrency
        self._stall_timeout_seconds = stall_timeout_seconds
        self._ledger = Ledger()
        self._end: str | None = None
        self._last_turn: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def context_tokens(self) -> int:
        """The most tokens of prompt and answer together."""
        return self._context_tokens

    @property
    def vocabulary_size(self) -> int:
        """Token ids are in range(vocabulary_size)."""
        return self._vocabulary_size

    def start(self) -> None:
        """Begin to run on this rank; returns at once."""
        self._beat()
        self._thread.start()

    def submit(self, request_id: str, prompt: Sequence[int], sampling: Sampling) -> None:
        """Queue one request. Raises `BadRequestError` for what would end the engine for everybody: no tokens, too many, unknown ones."""
        if not prompt or sampling.max_tokens < 1:
            raise BadRequestError("a request needs at least one prompt token and one token to generate.")
        if len(prompt) + sampling.max_tokens > self._context_tokens:
            raise BadRequestError(
                f"{len(prompt)} prompt tokens and {sampling.max_tokens} to generate are more than the context of {self._context_tokens}."
            )
        if not all(0 <= token < self._vocabulary_size for token in prompt):
            raise BadRequestError(f"a token id of the prompt is outside the vocabulary of {self._vocabulary_size}.")
        self._ledger.add(Ticket(request_id, tuple(prompt), sampling, Chooser(sampling, self._group.device)))

    def wait(self, request_ids: Iterable[str], timeout_seconds: float) -> None:
        """Return when any of these has news, or after the timeout."""
        self._ledger.wait(request_ids, timeout_seconds)

    def progress(self, request_id: str) -> Progress:
        """Take the news of one request. After a finish reason the id is forgotten; an unknown one counts as cancelled."""
        return self._ledger.progress(request_id)

    def cancel(self, request_id: str) -> None:
        """Forget a request; its tokens stop at the next turn. Unknown ids are fine."""
        self._ledger.cancel(request_id)

    def failure(self) -> str | None:
        """One sentence if the engine is dead or stalled and will never answer again, else None."""
        if self._end is not None or self._last_turn is None:
            return self._end
        still = time.monotonic() - self._last_turn
        if still > self._stall_timeout_seconds:
            return (
                f"Rank {self._group.rank}: no turn of the engine for {still:.0f} s "
                f"(stall timeout {self._stall_timeout_seconds:g} s); a rank hangs. All ranks must restart."
            )
        return None

    def stop(self, timeout_seconds: float = 30.0) -> None:
        """End the loop, on rank 0 for all ranks, running requests included; return when this rank's thread has ended."""
        if self._group.rank == 0:
            self._ledger.close(self._stopped())
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                if self._group.rank == 0:
                    self._lead()
                else:
                    self._follow()
            end = self._stopped()
        except Exception as error:  # the one place where any failure becomes a sentence; the watchdog ends the process on it
            log.exception("rank %d: engine failed", self._group.rank)
            reason = (str(error).splitlines() or [""])[0].rstrip(".")
            end = f"Rank {self._group.rank}: the engine failed: {type(error).__name__}: {reason}. All ranks must restart."
        self._end = end
        self._ledger.close(end)

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
        started = time.monotonic()
        lengths, tokens = rows[:, :1], rows[:, 1:]
        width = tokens.shape[1]
        mask = (torch.arange(width) >= width - lengths).to(torch.int64)
        verdict = Verdict(self._group, rows.shape[0], decide, self._beat)
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
            rows.shape[0],
            width,
            made.shape[1] - width,
            time.monotonic() - started,
        )

    def _decide(self, tickets: Sequence[Ticket], scores: torch.Tensor) -> torch.Tensor:
        """Pick every running row's token, tell the callers, and return the verdict for all ranks: [2, rows] int64."""
        tokens, usable = choose(scores, [None if ticket.over else ticket.chooser for ticket in tickets])
        news = [_news(ticket, token, ok) for ticket, token, ok in zip(tickets, tokens, usable, strict=True) if not ticket.over]
        self._ledger.publish(news)
        over = [ticket.over for ticket in tickets]
        return torch.tensor([[_PAD if ended else token for token, ended in zip(tokens, over, strict=True)], [int(ended) for ended in over]])

    def _beat(self) -> None:
        self._last_turn = time.monotonic()

    def _stopped(self) -> str:
        return f"Rank {self._group.rank}: the engine was stopped."


def _rows(tickets: Sequence[Ticket], context_tokens: int) -> tuple[torch.Tensor, int]:
    """Return a batch, [requests, 1 + width] int64: each row's length, then its left-padded tokens; and the steps it may take."""
    known = [[*ticket.prompt, *ticket.produced] for ticket in tickets]
    width = max(map(len, known))
    rows = torch.tensor([[len(tokens), *[_PAD] * (width - len(tokens)), *tokens] for tokens in known])
    return rows, min(max(ticket.remaining for ticket in tickets), context_tokens - width)


def _news(ticket: Ticket, token: int, usable: bool) -> News:
    if not usable:
        return News(ticket, finish_reason="error", error="The model's scores for this request are not numbers.")
    reason: FinishReason | None = None
    if token in ticket.sampling.stop_token_ids:
        reason = "stop"
    elif ticket.remaining == 1:
        reason = "length"
    return News(ticket, token, reason)
