"""What every route asks of the model and how it writes the answer; a route adds only its own JSON.

A route turns one request's bytes into a `Generation` and a `Reply`. Sessions run the first and feed the second.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol

from lmd_worker.api.prompts import Prompt
from lmd_worker.errors import BadRequestError

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
DONE = b"data: [DONE]\n\n"
"""The event after which a streamed answer holds nothing more."""
DEFAULT_MAX_TOKENS = 256
LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which is no JSON number, as OpenAI has it."""
_ERROR_TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}


@dataclass(frozen=True, slots=True)
class Generation:
    """The answers asked for: `choices` of them to each prompt, all alike but for their random numbers.

    `max_tokens` must fit the context; without it the answer has up to `default_max_tokens`, or to the end of the context where that
    is None or further. `logprobs` is the number of likely tokens told beside each one made, None for no log-probabilities. `echo`
    puts the prompt before the answer. `schema` is a JSON schema that the answer keeps to. `token_weights` are added to the model's
    scores, the penalties subtracted for what the answer already holds (`frequency` as often as it does).
    """

    prompts: tuple[Prompt, ...]
    choices: int = 1
    max_tokens: int | None = None
    default_max_tokens: int | None = DEFAULT_MAX_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    logprobs: int | None = None
    echo: bool = False
    schema: Mapping[str, Any] | None = None
    token_weights: Mapping[int, float] = field(default_factory=dict)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token's own bytes, which may be half a character, and its log-probability."""

    raw: bytes
    logprob: float

    @property
    def text(self) -> str:
        """The bytes as text, U+FFFD for what is none."""
        return self.raw.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class TokenReport:
    """One token made, the likely ones beside it, best first, and where in the answer's text it begins, in characters."""

    made: TokenText
    top: tuple[TokenText, ...]
    offset: int


Ending = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of one choice: `finish_reason` comes with the last piece. `tokens` only where log-probabilities were asked."""

    choice: int
    text: str
    finish_reason: Ending | None = None
    tokens: tuple[TokenReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a whole request: every prompt once, and every token made, also the ones that ended an answer."""

    prompt_tokens: int
    completion_tokens: int


class Reply(Protocol):
    """One route's way to write the answers of one request; may keep state between the calls."""

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> bytes:
        """Write the body of a request that is not streamed; every piece is one whole choice."""
        ...

    def events(self, piece: Piece) -> bytes:
        """Write events for what is new of one choice."""
        ...

    def end(self, finish_reasons: Sequence[Ending], usage: Usage) -> bytes:
        """Write the events after the last choice has ended, without the closing `DONE`."""
        ...


class Part(Enum):
    """Where a piece of an answer stands in it."""

    ONLY = "only"
    MORE = "more"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back for one request now. Status, content type and headers count on the first piece only."""

    body: bytes
    part: Part
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """One new request as the transport hands it over.

    `path` is what follows the model's name and version in the URL. `body` is None when the client sent a form, which the transport
    has taken apart. The transport does not tell the HTTP method.
    """

    path: str
    content_type: str
    body: bytes | None


Route = Callable[[Call], "Answer | tuple[Generation, Reply]"]
"""Answers at once or says what to generate; raises `BadRequestError`."""


def event(document: object) -> bytes:
    """Return one server-sent event that holds JSON."""
    return b"data: " + encode(document) + b"\n\n"


def encode(document: object) -> bytes:
    """Return JSON in ASCII, so that any text, also half surrogates a client sent, can be encoded."""
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def error_document(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, object]:
    """Return the error object of every route, in OpenAI's shape."""
    kind = _ERROR_TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(error: BadRequestError) -> Answer:
    """Return a whole answer that is an error; its client is told when to try again where that may help."""
    headers = {} if error.retry_after_seconds is None else {"Retry-After": str(error.retry_after_seconds)}
    document = error_document(str(error), error.status, param=error.param, code=error.code)
    return Answer(encode(document), Part.ONLY, status=error.status, headers=headers)
