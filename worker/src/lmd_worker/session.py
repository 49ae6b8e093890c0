"""One request from its admission to its last word; fed with an engine's news, asked for pieces of the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from lmd_worker.api.generation import DONE, EVENT_STREAM, Answer, Generation, Outcome, Part, Reply, encode, error_document, event, refusal
from lmd_worker.assembly import TextStream
from lmd_worker.engine.protocol import Progress


class Session:
    """The state of one answer."""

    def __init__(
        self,
        generation: Generation,
        reply: Reply,
        decode: Callable[[Sequence[int]], str],
        prompt_tokens: int,
        stop_token_ids: frozenset[int],
    ) -> None:
        self._streamed = generation.stream
        self._reply = reply
        self._stream = TextStream(decode, generation.stop)
        self._stop_token_ids = stop_token_ids
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = 0
        self._unsent: list[str] = []
        self._begun = False
        self._finish_reason: Literal["stop", "length"] | None = None
        self._failure: str | None = None

    @property
    def ended(self) -> bool:
        """Whether no more text will come."""
        return self._finish_reason is not None or self._failure is not None

    @property
    def cut_short(self) -> bool:
        """Whether a stop string ended the answer; the engine does not know of these and may still run."""
        return self._stream.stopped

    @property
    def has_news(self) -> bool:
        """Whether a piece of the answer now would not be empty."""
        return self.ended or (self._streamed and any(self._unsent))

    def take(self, progress: Progress) -> None:
        """Add an engine's news; tokens after the end are dropped and not counted."""
        for token in progress.tokens:
            if self.ended:
                return
            self._completion_tokens += 1
            if token not in self._stop_token_ids:
                self._unsent.append(self._stream.feed(token))
            if self._stream.stopped:
                self._finish_reason = "stop"
        if self.ended or progress.finish_reason is None:
            return
        if progress.finish_reason in ("stop", "length"):
            self._unsent.append(self._stream.finish())
            self._finish_reason = "stop" if self._stream.stopped or progress.finish_reason == "stop" else "length"
        else:
            self.fail(progress.error or "The request was cancelled by the server; try again.")

    def fail(self, sentence: str) -> None:
        """End the answer with an error for its client; the text so far still goes out if it is streamed."""
        self._failure = sentence

    def answer(self) -> Answer:
        """Take what is to be sent now.

        A request that ends in its first piece must get it as a whole response: TorchServe never completes a stream whose
        first piece is also its last.
        """
        part = (Part.LAST if self._begun else Part.ONLY) if self.ended else Part.MORE
        self._begun = True
        if part is Part.ONLY and self._failure is not None:
            return refusal(self._failure, 503)
        body = self._events() if self._streamed else self._whole()
        return Answer(body, part, content_type=EVENT_STREAM) if self._streamed else Answer(body, part)

    def _events(self) -> bytes:
        text = "".join(self._unsent)
        self._unsent = []
        events = [self._reply.delta(text)] if text else []
        if self._failure is not None:
            events += [event(error_document(self._failure, 503)), DONE]
        elif self._finish_reason is not None:
            events += [self._reply.end(self._outcome("", self._finish_reason)), DONE]
        return b"".join(events)

    def _whole(self) -> bytes:
        if self._failure is not None:
            return encode(error_document(self._failure, 503))
        if self._finish_reason is not None:
            return self._reply.whole(self._outcome("".join(self._unsent), self._finish_reason))
        return b""

    def _outcome(self, text: str, finish_reason: Literal["stop", "length"]) -> Outcome:
        return Outcome(text, finish_reason, self._prompt_tokens, self._completion_tokens)
