"""One request from its admission to its last word; fed with an engine's news, asked for pieces of the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lmd_worker.api.generation import (
    DONE,
    EVENT_STREAM,
    Answer,
    Ending,
    Part,
    Piece,
    Reply,
    TokenReport,
    TokenText,
    Usage,
    encode,
    error_document,
    event,
    refusal,
)
from lmd_worker.assembly import TextStream
from lmd_worker.engine.protocol import Progress, TokenLogprobs
from lmd_worker.errors import BadRequestError


class Choice:
    """One answer in the making: tokens in, text that can be sent out. `opening` is text that goes before it."""

    def __init__(
        self,
        number: int,
        engine_id: str,
        stream: TextStream,
        *,
        stop_token_ids: frozenset[int],
        token_bytes: Callable[[int], bytes],
        opening: str = "",
    ) -> None:
        self.engine_id = engine_id
        self.completion_tokens = 0
        self.finish_reason: Ending | None = None
        self._number = number
        self._stream = stream
        self._stop_token_ids = stop_token_ids
        self._token_bytes = token_bytes
        self._unsent = [opening]
        self._passed = 0
        self._reports: list[TokenReport] = []
        self._told_end = False

    @property
    def ended(self) -> bool:
        """Whether no more text will come."""
        return self.finish_reason is not None

    @property
    def cut_short(self) -> bool:
        """Whether a stop string ended the answer; the engine does not know of these and may still run."""
        return self._stream.stopped

    @property
    def has_news(self) -> bool:
        """Whether the next piece would say something."""
        return not self._told_end and (self.ended or any(self._unsent))

    def take(self, progress: Progress) -> str | None:
        """Add an engine's news and return why the answer failed, if it did; tokens after the end are dropped and not counted."""
        for index, token in enumerate(progress.tokens):
            if self.ended:
                return None
            self.completion_tokens += 1
            if token not in self._stop_token_ids:
                if progress.logprobs:
                    self._reports.append(self._report(token, progress.logprobs[index]))
                self._pass_on(self._stream.feed(token))
            if self._stream.stopped:
                self.finish_reason = "stop"
        if self.ended or progress.finish_reason is None:
            return None
        if progress.finish_reason not in ("stop", "length"):
            return progress.error or "The request was cancelled by the server; try again."
        self._pass_on(self._stream.finish())
        self.finish_reason = "stop" if self._stream.stopped or progress.finish_reason == "stop" else "length"
        return None

    def piece(self) -> Piece:
        """Take what is new."""
        text, self._unsent = "".join(self._unsent), []
        self._told_end = self.ended
        return Piece(self._number, text, self.finish_reason, self._told_tokens())

    def _pass_on(self, text: str) -> None:
        self._unsent.append(text)
        self._passed += len(text)

    def _told_tokens(self) -> tuple[TokenReport, ...]:
        """Take the tokens whose text has been passed on, and at the end the rest, unless a stop string has cut it off."""
        told = [report for report in self._reports if report.offset < self._passed or (self.ended and not self.cut_short)]
        self._reports = [] if self.ended else self._reports[len(told) :]
        return tuple(told)

    def _report(self, token: int, logprobs: TokenLogprobs) -> TokenReport:
        top = tuple(TokenText(self._token_bytes(one), logprob) for one, logprob in logprobs.top)
        return TokenReport(TokenText(self._token_bytes(token), logprobs.logprob), top, self._stream.position)


class Session:
    """The state of one request: its choices, which share one reply and end together."""

    def __init__(self, reply: Reply, choices: Sequence[Choice], *, prompt_tokens: int, streamed: bool) -> None:
        self.choices = choices
        self._reply = reply
        self._prompt_tokens = prompt_tokens
        self._streamed = streamed
        self._begun = False
        self._failure: str | None = None

    @property
    def failed(self) -> bool:
        """Whether it ends with an error; what its choices still make is not sent."""
        return self._failure is not None

    @property
    def ended(self) -> bool:
        """Whether no more text will come."""
        return self.failed or all(choice.ended for choice in self.choices)

    @property
    def running(self) -> list[Choice]:
        """The choices that still get tokens."""
        return [] if self.failed else [choice for choice in self.choices if not choice.ended]

    @property
    def has_news(self) -> bool:
        """Whether a piece of the answer now would not be empty."""
        return self.ended or (self._streamed and any(choice.has_news for choice in self.choices))

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
            return refusal(BadRequestError(self._failure, 503))
        body = self._events() if self._streamed else self._whole()
        return Answer(body, part, content_type=EVENT_STREAM) if self._streamed else Answer(body, part)

    def _events(self) -> bytes:
        events = [self._reply.events(choice.piece()) for choice in self.choices if choice.has_news]
        if self._failure is not None:
            events += [event(error_document(self._failure, 503)), DONE]
        elif self.ended:
            reasons = [choice.finish_reason for choice in self.choices if choice.finish_reason is not None]
            events += [self._reply.end(reasons, self._usage()), DONE]
        return b"".join(events)

    def _whole(self) -> bytes:
        if self._failure is not None:
            return encode(error_document(self._failure, 503))
        return self._reply.whole([choice.piece() for choice in self.choices], self._usage()) if self.ended else b""

    def _usage(self) -> Usage:
        return Usage(self._prompt_tokens, sum(choice.completion_tokens for choice in self.choices))
