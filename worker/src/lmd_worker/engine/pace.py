"""How much of a prompt a turn may hold, so that answers that are running do not stand still while a long prompt is read.

A turn that also reads a piece of a prompt takes longer than one that does not. Both are measured as they come, and a piece is cut so
that its turn takes about `STRETCH` times as long as one of answers alone will, once all who are here are answered: measured by the few
who are at first, a crowd that comes at once would be let in for twice as long, by turns that hardly answer anybody. How long answers
take alone depends on how many they are; where prompts come without a pause, a turn without any is put in now and then, or it would
never be known. A token of a small piece costs more than one of a large piece, as every turn has a price of its own. Rank 0 alone
decides; it tells the others the number.
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
MIXED_TURNS = 24
"""In a row, before answers are timed alone again."""
_NEWEST = 0.2  # weight of the newest measurement
_RARE = 0.5  # and of one that is rarely made
_DEARER = 0.5  # and of one that says prompts have become dearer, as they do towards the end of a long one
_LEAST_PART = 0.1  # of a turn that is laid to its prompt tokens, however long answers alone took when last seen


class Pace:
    """Seconds of turns, smoothed. All are kept by size within a factor of two: of how many answers, and how many prompt tokens."""

    def __init__(self) -> None:
        self._alone: dict[int, float] = {}
        self._mixed: dict[int, float] = {}  # by all that is computed, answers and prompt tokens
        self._prices: dict[int, float] = {}  # of one prompt token
        self._mixed_turns = 0

    def chunk(self, answering: int, reading: int) -> int:
        """Return the most prompt tokens for the next turn; 0 for a turn that times the answers alone.

        In it, so many answers go on, and the prompts of so many others are being read.
        """
        if answering == 0:
            return LARGEST_CHUNK
        alone = self._alone.get(answering.bit_length())
        if alone is None or self._mixed_turns >= MIXED_TURNS:
            return 0
        if not self._prices:
            return FIRST_CHUNK
        return max(SMALLEST_CHUNK, min(LARGEST_CHUNK, self._affordable(STRETCH * max(alone, self._usual(answering + reading)) - alone)))

    def learn(self, seconds: float, answering: int, prompt_tokens: int) -> None:
        """Take in one turn: how long it took, for how many answers and how many tokens of prompts."""
        many = answering.bit_length()
        if prompt_tokens == 0:
            is_rare = self._mixed_turns >= MIXED_TURNS
            self._alone[many] = _mean(self._alone.get(many), seconds, _RARE if is_rare else _NEWEST)
            self._mixed_turns = 0
            return
        self._mixed_turns += 1
        size = (answering + prompt_tokens).bit_length()
        self._mixed[size] = _mean(self._mixed.get(size), seconds, _RARE)
        rest = seconds - self._alone.get(many, 0.0)
        self._learn_price(prompt_tokens.bit_length(), max(rest, seconds * _LEAST_PART) / prompt_tokens)

    def _usual(self, many: int) -> float:
        """Return the seconds of a turn of so many answers alone, by turns of as many tokens of any kind where there was none yet."""
        known = {**self._mixed, **self._alone}
        return known[max(size for size in known if size <= many.bit_length())]

    def _learn_price(self, size: int, price: float) -> None:
        """Take in what one token of a piece of this size cost; what has changed is taken to have changed for all sizes alike."""
        old = self._prices.setdefault(size, price)
        change = _mean(old, price, _DEARER if price > old else _NEWEST) / old
        self._prices = {other: known * change for other, known in self._prices.items()}

    def _affordable(self, seconds: float) -> int:
        """Return the most prompt tokens that take so long. A size that was never seen costs as the next smaller one: it is cheaper."""
        most, price = 0, self._prices[min(self._prices)]
        for size in range(1, LARGEST_CHUNK.bit_length() + 1):
            price = self._prices.get(size, price)
            tokens = min(2**size - 1, int(seconds / price))
            most = tokens if tokens >= 2 ** (size - 1) else most
        return most


def _mean(old: float | None, new: float, weight: float) -> float:
    return new if old is None else old + weight * (new - old)
