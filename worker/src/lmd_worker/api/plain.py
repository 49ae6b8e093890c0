"""The plain route, `POST /predictions/<model>`: a prompt or messages in, the answer out, whole or as events.

One JSON object with `prompt` or `messages` and what it shares with other routes (see `Generation`). The answer is
`{"model", "text", "finish_reason", "prompt_tokens", "completion_tokens"}`; streamed, `{"text"}` events and one with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmd_worker.api import documents, fields, messages
from lmd_worker.api.documents import Document
from lmd_worker.api.fields import Fields
from lmd_worker.api.generation import Call, Ending, Generation, Piece, Usage, encode, event
from lmd_worker.api.prompts import Chat, Plain, Prompt

ROLES = ("system", "user", "assistant")
FIELDS: Fields = {
    "prompt": fields.raw,
    "messages": fields.raw,
    "max_tokens": fields.integer(1),
    "temperature": fields.number(0.0, 2.0, default=0.0),
    "top_p": fields.number(0.0, 1.0, default=1.0, above_low=True),
    "top_k": fields.integer(0, default=0),
    "seed": fields.integer(0, fields.MOST_SEED),
    "stop": fields.stop_strings,
    "stream": fields.boolean(),
}


@dataclass(frozen=True, slots=True)
class PlainReply:
    """Writes answers of the plain route."""

    model: str

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> bytes:
        """One JSON object with the whole text."""
        (piece,) = pieces
        return encode({"model": self.model, "text": piece.text, **_ending(piece.finish_reason, usage)})

    def events(self, piece: Piece) -> bytes:
        """One `{"text"}` event, if there is text."""
        return event({"text": piece.text}) if piece.text else b""

    def end(self, finish_reasons: Sequence[Ending], usage: Usage) -> bytes:
        """One event that holds everything but the text."""
        return event({"model": self.model, **_ending(finish_reasons[0], usage)})


def parse(call: Call) -> Generation:
    """Read one request; raises `BadRequestError` naming the field."""
    document = documents.json_object(call.content_type, call.body)
    values = fields.read(document, FIELDS)
    del values["prompt"], values["messages"]
    return Generation((_prompt(document),), **values)


def _prompt(document: Document) -> Prompt:
    if "prompt" in document and "messages" in document:
        raise documents.wrong("prompt", "give either prompt or messages, not both.")
    if "messages" in document:
        return Chat(messages.read(document["messages"], ROLES))
    if "prompt" not in document:
        raise documents.wrong("prompt", "missing; give prompt or messages.")
    prompt = documents.text(document["prompt"], "prompt")
    if not prompt:
        raise documents.wrong("prompt", "must not be empty.")
    return Plain(prompt)


def _ending(finish_reason: Ending | None, usage: Usage) -> dict[str, object]:
    return {
        "finish_reason": finish_reason,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }
