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


class Done(StoppingCriteria):
    """Stops the rows whose verdict says so; the batch ends when all have."""

    def __init__(self, verdict: Verdict) -> None:
        self._verdict = verdict

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Return [rows] bool for the step just taken."""
        return self._verdict.done(input_ids.device)
