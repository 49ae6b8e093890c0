"""Constraints over a request's own scores that need no grammar: weights of tokens, and penalties for what was said already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lmd_worker.engine.protocol import Constraint


class Weights:
    """Adds a fixed weight to some tokens' scores, and takes from those already made `presence` and `frequency` for each time.

    Source of the formula: OpenAI's guide on frequency and presence penalties; only tokens of the answer count.
    """

    def __init__(self, weights: Mapping[int, float], *, presence: float = 0.0, frequency: float = 0.0) -> None:
        self._weights = weights
        self._presence = presence
        self._frequency = frequency
        self._made: Counter[int] = Counter()

    def restrict(self, scores: Any) -> Any:
        """Return other scores, [1, vocabulary] float32; those given are left as they are."""
        changes = dict(self._weights)
        if self._presence or self._frequency:
            for token, times in self._made.items():
                changes[token] = changes.get(token, 0.0) - self._presence - self._frequency * times
        if not changes:
            return scores
        changed = scores.clone()
        changed[0, list(changes)] += scores.new_tensor(list(changes.values()))
        return changed

    def accept(self, token: int) -> None:
        """Count one more token of the answer."""
        self._made[token] += 1


class Both:
    """Constraints one after the other."""

    def __init__(self, constraints: Sequence[Constraint]) -> None:
        self._constraints = constraints

    def restrict(self, scores: Any) -> Any:
        """Return the scores that all of them leave."""
        for constraint in self._constraints:
            scores = constraint.restrict(scores)
        return scores

    def accept(self, token: int) -> None:
        """Tell all of them."""
        for constraint in self._constraints:
            constraint.accept(token)
