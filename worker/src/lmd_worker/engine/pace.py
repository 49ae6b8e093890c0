"""How much of a prompt a turn may hold, so that answers that are running do not stand still while a long prompt is read.

A turn that also reads a piece of a prompt takes longer than one that does not. Both are measured as they come, and a piece is cut so
that its turn takes about `STRETCH` times as long as the answers alone. Rank 0 alone decides; it tells the others the number.
"""

from __future__ import annotations

STRETCH = 2.5
"""Wanted is that the rarest wait between two tokens is at most 5 times the usual one; half of that is for what cannot be foreseen."""
LARGEST_CHUNK = 512
"""Where nobody waits for a token: enough to keep a device busy, and a bound for the memory of a turn."""
SMALLEST_CHUNK = 8
"""Prompts go on, however slow the device is."""
FIRST_CHUNK = 32
"""Until something has been measured."""
_NEWEST = 0.2  # weight of the newest measurement
_DEARER = 0.5  # and of one that says prompts have become dearer, as they do towards the end of a long one
_LEAST_PART = 0.1  # of a turn that is laid to its prompt tokens, however long answers alone took when last seen


class Pace:
    """Seconds of turns, smoothed."""

    def __init__(self) -> None:
        self._answers: float | None = None
        self._prompt_token: float | None = None

    def chunk(self, answering: int) -> int:
        """Return the most prompt tokens for the next turn, in which so many answers go on."""
        if answering == 0:
            return LARGEST_CHUNK
        if self._answers is None or self._prompt_token is None:
            return FIRST_CHUNK
        return max(SMALLEST_CHUNK, min(LARGEST_CHUNK, int((STRETCH - 1) * self._answers / self._prompt_token)))

    def learn(self, seconds: float, answering: int, prompt_tokens: int) -> None:
        """Take in one turn: how long it took, for how many answers and how many tokens of prompts."""
        if prompt_tokens == 0:
            self._answers = _mean(self._answers, seconds, _NEWEST)
        elif answering == 0 or self._answers is not None:
            rest = seconds - (self._answers or 0.0 if answering else 0.0)
            price = max(rest, seconds * _LEAST_PART) / prompt_tokens
            dearer = self._prompt_token is not None and price > self._prompt_token
            self._prompt_token = _mean(self._prompt_token, price, _DEARER if dearer else _NEWEST)


def _mean(old: float | None, new: float, weight: float) -> float:
    return new if old is None else old + weight * (new - old)
