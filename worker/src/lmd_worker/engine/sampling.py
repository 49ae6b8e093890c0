"""How one request's next token is picked from the model's scores, on rank 0 alone.

Each request owns its random generator, so that a seed gives the same draws whatever else is in the batch. The filters are
transformers' own. The scores themselves depend on the batch in their last bits; in float32 that is far below what changes a draw.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lmd_worker.engine.protocol import Sampling, TokenLogprobs
from lmd_worker.errors import BadRequestError

SMALLEST_TEMPERATURE = 1e-4
"""Below it a draw is the best token in all but ties, and dividing float32 scores by it may overflow."""
NOT_NUMBERS = "The model's scores for this request are not numbers."
NONE_ALLOWED = "The constraint of this request allows no token here."

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """One row's next token, or the sentence that ends its request instead."""

    token: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None


class Chooser:
    """Picks one request's tokens; keeps the state of its random generator and of its constraint between them."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.greedy = sampling.temperature < SMALLEST_TEMPERATURE or sampling.top_k == 1
        self.logprobs = sampling.logprobs
        self.constraint = sampling.constraint
        self._warpers: list[Any] = []
        if self.greedy:
            return
        try:
            self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k:
                self._warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1.0:
                self._warpers.append(TopPLogitsWarper(sampling.top_p))
        except ValueError as error:
            raise BadRequestError(f"sampling: {error}") from error
        self._generator = torch.Generator(device=device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % 2**63)

    def draw(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the next token, [1] int64, from `scores`: [1, vocabulary] float32, no NaN, left as they are."""
        scores = scores - scores.amax(dim=-1, keepdim=True)
        for warper in self._warpers:
            scores = warper(None, scores)
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator).squeeze(1)


def choose(scores: torch.Tensor, choosers: Sequence[Chooser | None]) -> list[Choice]:
    """Return each row's choice; rows without a chooser get their best token.

    `scores`: [rows, vocabulary] float32, left as they are. One transfer from the device, however many rows, plus one for all rows
    that want log-probabilities. What is wrong with one row, or fails in its constraint, stays that row's error.
    """
    allowed, errors = _restricted(scores, choosers)
    best = allowed.max(dim=-1)
    tokens = best.indices.clone()
    for row, chooser in enumerate(choosers):
        if chooser is not None and not chooser.greedy:
            tokens[row] = chooser.draw(allowed[row : row + 1].nan_to_num())[0]
    logprobs = _logprobs(scores, tokens, choosers)
    usable = best.values.isfinite().to(tokens.dtype)
    picked, fine = torch.stack([tokens, usable]).tolist()
    return [
        _choice(row, token, bool(ok), choosers[row], errors.get(row), logprobs.get(row))
        for row, (token, ok) in enumerate(zip(picked, fine, strict=True))
    ]


def _restricted(scores: torch.Tensor, choosers: Sequence[Chooser | None]) -> tuple[torch.Tensor, dict[int, str]]:
    """Return the scores with what constraints forbid at minus infinity, and the rows whose constraint failed."""
    errors: dict[int, str] = {}
    bound = [(row, chooser.constraint) for row, chooser in enumerate(choosers) if chooser is not None and chooser.constraint is not None]
    if not bound:
        return scores, errors
    scores = scores.clone()
    for row, constraint in bound:
        try:
            scores[row] = constraint.restrict(scores[row : row + 1].clone())[0]
        except Exception as error:  # a grammar's own fault, and no neighbour's
            errors[row] = _constraint_failed(error)
    return scores, errors


def _logprobs(scores: torch.Tensor, tokens: torch.Tensor, choosers: Sequence[Chooser | None]) -> dict[int, TokenLogprobs]:
    """Return the log-probabilities of the rows that want them, of the unrestricted scores at temperature 1."""
    wanted = {row: chooser.logprobs for row, chooser in enumerate(choosers) if chooser is not None and chooser.logprobs is not None}
    if not wanted:
        return {}
    rows = torch.tensor(list(wanted), device=scores.device)
    every = scores[rows].float().log_softmax(dim=-1)
    best = every.topk(max(wanted.values()), dim=-1)
    own = every.gather(1, tokens[rows].unsqueeze(1))
    values = torch.cat([own, best.values], dim=1).tolist()
    ids = best.indices.tolist()
    return {
        row: TokenLogprobs(values[index][0], tuple(zip(ids[index][:count], values[index][1 : count + 1], strict=True)))
        for index, (row, count) in enumerate(wanted.items())
    }


def _choice(row: int, token: int, usable: bool, chooser: Chooser | None, error: str | None, logprobs: TokenLogprobs | None) -> Choice:
    constraint = chooser.constraint if chooser is not None else None
    if error is None and not usable:
        error = NONE_ALLOWED if constraint is not None else NOT_NUMBERS
    if error is None and constraint is not None:
        try:
            constraint.accept(token)
        except Exception as failure:  # as above
            error = _constraint_failed(failure)
    return Choice(token, logprobs, error)


def _constraint_failed(error: Exception) -> str:
    log.warning("a constraint failed: error=%s", type(error).__name__)
    return f"The constraint of this request failed: {type(error).__name__}."
