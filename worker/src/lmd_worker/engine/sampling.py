"""How one request's next token is picked from the model's scores, on rank 0 alone.

Each request owns its random generator, so that a seed gives the same draws whatever else is in the batch. The filters are
transformers' own. The scores themselves depend on the batch in their last bits; in float32 that is far below what changes a draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lmd_worker.engine.protocol import Sampling
from lmd_worker.errors import BadRequestError

SMALLEST_TEMPERATURE = 1e-4
"""Below it a draw is the best token in all but ties, and dividing float32 scores by it may overflow."""


class Chooser:
    """Picks one request's tokens; keeps the state of its random generator between them."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.greedy = sampling.temperature < SMALLEST_TEMPERATURE or sampling.top_k == 1
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
        """Return the next token, [1] int64, from `scores`: [1, vocabulary] float32, finite, left as they are."""
        scores = scores - scores.amax(dim=-1, keepdim=True)
        for warper in self._warpers:
            scores = warper(None, scores)
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator).squeeze(1)


def choose(scores: torch.Tensor, choosers: Sequence[Chooser | None]) -> tuple[list[int], list[bool]]:
    """Return each row's token and whether the row's scores are numbers; rows without a chooser get their best token.

    `scores`: [rows, vocabulary] float32, left as they are. One transfer from the device, however many rows.
    """
    best = scores.max(dim=-1)
    tokens = best.indices.clone()
    for row, chooser in enumerate(choosers):
        if chooser is not None and not chooser.greedy:
            tokens[row] = chooser.draw(scores[row : row + 1].nan_to_num())[0]
    usable = best.values.isfinite().to(tokens.dtype)
    rows = torch.stack([tokens, usable]).tolist()
    return rows[0], [bool(flag) for flag in rows[1]]
