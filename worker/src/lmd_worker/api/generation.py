"""What every route asks of the model and how it writes the answer; a route adds only its own JSON.

A route turns one request's bytes into a `Generation` and a `Reply`. Sessions run the first and feed the second.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
DONE = b"data: [DONE]\n\n"
"""The event after which a streamed answer holds nothing more."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer asked for. `max_tokens` None: the default, or what is left of the context if that is less."""

    prompt: str | tuple[Message, ...]
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an answer ended. `completion_tokens` counts every token made, also the one that ended it."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


class Reply(Protocol):
    """One route's way to write one answer."""

    def whole(self, outcome: Outcome) -> bytes:
        """Write the body of an answer that is not streamed."""
        ...

    def delta(self, text: str) -> bytes:
        """Write an event with more text."""
        ...

    def end(self, outcome: Outcome) -> bytes:
        """Write the last events of a stream, without the closing `DONE`."""
        ...


class Part(Enum):
    """Where a piece of an answer stands in it."""

    ONLY = "only"
    MORE = "more"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back for one request now. Status and content type count on the first piece only."""

    body: bytes
    part: Part
    status: int = 200
    content_type: str = JSON


@dataclass(frozen=True, slots=True)
class Call:
    """One new request as the transport hands it over.

    `path` is what follows the model's name in the URL. `body` is None when the client sent a form, which the transport
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


def error_document(message: str, status: int) -> dict[str, object]:
    """Return the error object of every route, in the manner of OpenAI's."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "code": status}}


def refusal(message: str, status: int) -> Answer:
    """Return a whole answer that is an error."""
    return Answer(encode(error_document(message, status)), Part.ONLY, status=status)
