"""From token ids, one by one, to text that can be sent: no half characters, nothing of a stop string.

`TextStream` decodes a small window at a time, so a long answer costs linear time, and handles each token by itself,
so the text does not depend on how tokens arrive together. Imports no tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

REPLACEMENT = "\ufffd"
"""What an incomplete character decodes to."""
CONTEXT_TOKENS = 8
"""Of the prompt, that the first token of an answer is decoded with; a few, as the first of them may be half a character."""
HELD_TOKENS = 64
"""Tokens waited for to complete a character; four suffice for any, the rest is patience with junk bytes."""


class StopStrings:
    """Lets text pass up to the first stop string; keeps back what may become one.

    Each character is looked at once per string (Knuth, Morris, Pratt 1977). The string that is complete first ends the
    text; of several that end at the same character the longest is cut.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = [(stop, _borders(stop)) for stop in stops]
        self._matched = [0] * len(self._stops)
        self._held = ""
        self.stopped = False

    def pass_on(self, text: str) -> str:
        """Take more text and return what may be sent now; nothing any more once `stopped`."""
        if not self._stops:
            return text
        passed: list[str] = []
        for character in text:
            if self.stopped:
                break
            passed.append(self._push(character))
        return "".join(passed)

    def release(self) -> str:
        """Return what was kept back, as no more text follows."""
        held, self._held = self._held, ""
        return held

    def _push(self, character: str) -> str:
        self._held += character
        self._matched = [
            _advance(stop, borders, matched, character) for (stop, borders), matched in zip(self._stops, self._matched, strict=True)
        ]
        complete = [matched for (stop, _), matched in zip(self._stops, self._matched, strict=True) if matched == len(stop)]
        if complete:
            self.stopped = True
            text, self._held = self._held[: len(self._held) - max(complete)], ""
            return text
        keep_from = len(self._held) - max(self._matched)
        text, self._held = self._held[:keep_from], self._held[keep_from:]
        return text


def _borders(pattern: str) -> list[int]:
    """Return for every prefix of `pattern` the length of its longest proper suffix that is also a prefix."""
    borders = [0] * len(pattern)
    for index in range(1, len(pattern)):
        borders[index] = _advance(pattern, borders, borders[index - 1], pattern[index])
    return borders


def _advance(pattern: str, borders: Sequence[int], matched: int, character: str) -> int:
    """Return how many characters of `pattern` are matched after `character`."""
    while matched and pattern[matched] != character:
        matched = borders[matched - 1]
    return matched + 1 if pattern[matched] == character else 0


class TextStream:
    """The text of one answer as its tokens come in.

    `decode` gives the text of token ids, with U+FFFD for what is incomplete. A token is decoded with the ones that gave
    the last text before it, because tokenizers write a first token differently (a leading space is dropped). `before` are the
    tokens that the answer continues, none where it begins a text of its own.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Iterable[str] = (), before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._stops = StopStrings(stops)
        self._window = list(before[-CONTEXT_TOKENS:])
        self._context_tokens = len(self._window)
        self._context_text = decode(self._window) if self._window else ""
        self.position = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come; later tokens give no text."""
        return self._stops.stopped

    def feed(self, token: int) -> str:
        """Take the next token and return the text that is certain now, often none; `position` counts what was decoded, in characters."""
        if self.stopped:
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        waited_for_long = len(self._window) - self._context_tokens > HELD_TOKENS
        if text.endswith(REPLACEMENT) and not waited_for_long:
            return ""
        new = self._behind_context(text)
        if new:
            self._window = self._window[self._context_tokens :]
            self._context_tokens = len(self._window)
            self._context_text = self._decode(self._window)
        elif waited_for_long:
            del self._window[self._context_tokens :]
        self.position += len(new)
        return self._stops.pass_on(new)

    def finish(self) -> str:
        """Return the rest, as no token follows: also half characters and what looked like a stop string's beginning."""
        if self.stopped:
            return ""
        rest = self._behind_context(self._decode(self._window)) if self._window else ""
        self._window = []
        self._context_tokens, self._context_text = 0, ""
        return self._stops.pass_on(rest) + self._stops.release()

    def _behind_context(self, text: str) -> str:
        """Return what the new tokens add. Junk bytes can turn text before them into U+FFFD, which was sent as it was."""
        if text.startswith(self._context_text):
            return text[len(self._context_text) :]
        return self._decode(self._window[self._context_tokens :])
