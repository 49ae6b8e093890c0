"""The plain route, `POST /predictions/<model>`: a prompt or messages in, the answer out, whole or as events.

One JSON object with `prompt` or `messages` and what it shares with other routes (see `Generation`). The answer is
`{"model", "text", "finish_reason", "prompt_tokens", "completion_tokens"}`; streamed, `{"text"}` events and one with the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmd_worker.api import documents
from lmd_worker.api.documents import Document
from lmd_worker.api.generation import Call, Generation, Message, Outcome, encode, event
from lmd_worker.errors import BadRequestError

FIELDS = frozenset({"prompt", "messages", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stream"})
ROLES = ("system", "user", "assistant")
MOST_STOPS = 4
MOST_STOP_CHARACTERS = 256
"""A stop string's end is held back while it may still come; no answer should wait for a whole page."""


@dataclass(frozen=True, slots=True)
class PlainReply:
    """Writes answers of the plain route."""

    model: str

    def whole(self, outcome: Outcome) -> bytes:
        """One JSON object with the whole text."""
        return encode({"model": self.model, "text": outcome.text, **_ending(outcome)})

    def delta(self, text: str) -> bytes:
        """One `{"text"}` event."""
        return event({"text": text})

    def end(self, outcome: Outcome) -> bytes:
        """One event that holds everything but the text."""
        return event({"model": self.model, **_ending(outcome)})


def parse(call: Call) -> Generation:
    """Read one request; raises `BadRequestError` naming the field."""
    document = documents.json_object(call.content_type, call.body)
    documents.refuse_unknown(document, FIELDS)
    return Generation(
        prompt=_prompt(document),
        max_tokens=documents.integer(document, "max_tokens", None, 1),
        temperature=documents.number(document, "temperature", 0.0, 0.0, 2.0),
        top_p=documents.number(document, "top_p", 1.0, 0.0, 1.0, above_low=True),
        top_k=documents.integer(document, "top_k", 0, 0) or 0,
        seed=documents.integer(document, "seed", None, 0, 2**63 - 1),
        stop=stop_strings(document),
        stream=documents.boolean(document, "stream", default=False),
    )


def stop_strings(document: Document) -> tuple[str, ...]:
    """Return `stop`, given as one string or a list, as a tuple."""
    value = document.get("stop", [])
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        raise BadRequestError(f"stop: must be a string or a list of strings, got {documents.kind(value)}.")
    if len(stops) > MOST_STOPS:
        raise BadRequestError(f"stop: at most {MOST_STOPS} strings, got {len(stops)}.")
    for index, stop in enumerate(stops):
        where = "stop" if isinstance(value, str) else f"stop[{index}]"
        if not documents.text(stop, where):
            raise BadRequestError(f"{where}: must not be empty.")
        if len(stop) > MOST_STOP_CHARACTERS:
            raise BadRequestError(f"{where}: at most {MOST_STOP_CHARACTERS} characters, got {len(stop)}.")
    return tuple(stops)


def chat_messages(value: Any) -> tuple[Message, ...]:
    """Return `messages` as turns of a conversation."""
    if not isinstance(value, list):
        raise BadRequestError(f"messages: must be a list of messages, got {documents.kind(value)}.")
    if not value:
        raise BadRequestError("messages: must not be empty.")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(value))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise BadRequestError(f"{where}: must be an object with role and content, got {documents.kind(value)}.")
    documents.refuse_unknown(value, ("role", "content"), f"{where}.")
    for name in ("role", "content"):
        if name not in value:
            raise BadRequestError(f"{where}.{name}: missing.")
    role = documents.text(value["role"], f"{where}.role")
    if role not in ROLES:
        raise BadRequestError(f"{where}.role: must be one of {', '.join(ROLES)}, got {documents.shown(role)}.")
    return Message(role, documents.text(value["content"], f"{where}.content"))  # type: ignore[arg-type]  # one of ROLES


def _prompt(document: Document) -> str | tuple[Message, ...]:
    if "prompt" in document and "messages" in document:
        raise BadRequestError("prompt: give either prompt or messages, not both.")
    if "messages" in document:
        return chat_messages(document["messages"])
    if "prompt" not in document:
        raise BadRequestError("prompt: missing; give prompt or messages.")
    prompt = documents.text(document["prompt"], "prompt")
    if not prompt:
        raise BadRequestError("prompt: must not be empty.")
    return prompt


def _ending(outcome: Outcome) -> dict[str, object]:
    return {
        "finish_reason": outcome.finish_reason,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
    }
