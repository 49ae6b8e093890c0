"""One step of `generate` that all ranks take alike: rank 0 decides, the others do as it did.

`generate` asks a logits processor for scores and takes the best, and asks a stopping criterion which rows are done. Ours answer
both with rank 0's verdict, one small broadcast a step, so no rank needs another's random numbers and none can take another way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

from lmd_worker.ranks import Group

Decide = Callable[[torch.Tensor], torch.Tensor]
"""Scores [rows, vocabulary] float32 in, verdict [2, rows] int64 on the CPU out: each row's token, and 1 where the row is done."""


class Verdict(LogitsProcessor):
    """Turns scores into ones that only rank 0's choice can win; keeps which rows are done."""

    def __init__(self, group: Group, rows: int, decide: Decide | None, beat: Callable[[], None]) -> None:
        self._group = group
        self._decide = decide
        self._beat = beat
        self._verdict = torch.zeros(2, rows, dtype=torch.int64)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores`, overwritten: [rows, vocabulary], 0 for the chosen token and minus infinity elsewhere."""
        self._beat()
        if self._decide is not None:
            self._verdict = self._decide(scores)
        self._group.broadcast(self._verdict)
        return scores.fill_(-torch.inf).scatter_(1, self._verdict[0].to(scores.device).unsqueeze(1), 0.0)

    def done(self, device: torch.device) -> torch.Tensor:
        """Return [rows] bool: which rows need no more tokens."""
        return self._verdict[1].bool().to(device)


class DealtVerdict(Verdict):
    """The verdict where each rank decodes rows of its own: rank 0 still decides for all of them.

    `rows` are those of the whole batch and `each` what every rank computes, the first ranks the first ones; what is beyond `rows` fills up.
    A rank's rows count as done when those of all ranks are, so that all ranks take the same steps and none waits for another in a
    forward: whoever is done earlier, or has no row at all, goes on with tokens that concern nobody.
    """

    def __init__(self, group: Group, rows: int, each: int, decide: Decide | None, beat: Callable[[], None]) -> None:
        super().__init__(group, rows, decide, beat)
        self._each = each
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores`, overwritten: [each, vocabulary], 0 for the chosen token and minus infinity elsewhere."""
        self._beat()
        everyones = self._group.collect(scores.float().cpu())
        if self._decide is not None:
            self._verdict = self._decide(torch.cat(everyones)[: self._rows].to(scores.device))
        self._group.broadcast(self._verdict)
        first = self._group.rank * self._each
        tokens = torch.zeros(self._each, 1, dtype=torch.int64)
        own = self._verdict[0, first : first + self._each]
        tokens[: len(own), 0] = own
        return scores.fill_(-torch.inf).scatter_(1, tokens.to(scores.device), 0.0)

    def done(self, device: torch.device) -> torch.Tensor:
        """Return [each] bool: all of them once every row of every rank is done."""
        return self._verdict[1].bool().all().expand(self._each).to(device)


class Done(StoppingCriteria):
    """Stops the rows whose verdict says so; the batch ends when all have."""

    def __init__(self, verdict: Verdict) -> None:
        self._verdict = verdict

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Return [rows] bool for the step just taken."""
        return self._verdict.done(input_ids.device)
