"""`v1/chat/completions`: a conversation to answer, in OpenAI's shape.

Source of the shape: the `openai` package, types/chat/chat_completion.py and types/chat/chat_completion_chunk.py (3.54.0).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lmd_worker.api import fields, formats, messages, parameters, tools
from lmd_worker.api.completions import usage_document
from lmd_worker.api.documents import wrong
from lmd_worker.api.fields import Fields
from lmd_worker.api.generation import LEAST_LOGPROB, Call, Ending, Generation, Piece, TokenReport, TokenText, Usage, encode, event
from lmd_worker.api.prompts import Chat
from lmd_worker.api.tools import ToolCall, ToolCallReader
from lmd_worker.text import Text

_TEXT_ONLY = "this server answers text only; leave it out."
_OLD_TOOLS = "an older form of tools; use tools."
FIELDS: Fields = {
    **parameters.IGNORED,
    **parameters.SAMPLING,
    "messages": fields.raw,
    "max_completion_tokens": fields.integer(1),
    "logprobs": fields.boolean(),
    "top_logprobs": fields.integer(0, parameters.MOST_LOGPROBS),
    "response_format": fields.raw,
    "tools": fields.raw,
    "tool_choice": fields.raw,
    "parallel_tool_calls": fields.only(True, "the number of calls cannot be held to one here; leave it out."),
    "store": fields.only(False, "answers are not stored here; leave it out."),
    "service_tier": fields.raw,
    "modalities": fields.only(["text"], _TEXT_ONLY),
    "audio": fields.only(None, _TEXT_ONLY),
    "functions": fields.only([], _OLD_TOOLS),
    "function_call": fields.only("none", _OLD_TOOLS),
    "prediction": fields.only(None, "predicted output is not supported; leave it out."),
    "moderation": fields.only(None, "there is no moderation here; leave it out."),
    "reasoning_effort": fields.only("none", "this server does not steer reasoning; leave it out."),
    "verbosity": fields.only("medium", "this server does not steer verbosity; say it in a message."),
    "web_search_options": fields.only(None, "this server does not search the web; leave it out."),
}


@dataclass(slots=True)
class _State:
    """What has been streamed of one choice."""

    reader: ToolCallReader | None
    begun: bool = False
    calls: int = 0


@dataclass(slots=True)
class ChatReply:
    """Writes answers of this route; `reads_calls` when the model writes tool calls in a way that is understood."""

    model: str
    include_usage: bool = False
    with_logprobs: bool = False
    reads_calls: bool = False
    identifier: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    _states: dict[int, _State] = field(default_factory=dict)

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> bytes:
        """One `chat.completion` with every choice."""
        choices = [self._choice(piece) for piece in pieces]
        return encode({**self._head("chat.completion"), "choices": choices, "usage": usage_document(usage)})

    def events(self, piece: Piece) -> bytes:
        """Events with what is new of one choice: its role first, then text and calls, then why it ended."""
        state = self._states.setdefault(piece.choice, _State(ToolCallReader() if self.reads_calls else None))
        deltas: list[dict[str, Any]] = [] if state.begun else [{"role": "assistant", "content": ""}]
        state.begun = True
        said = [self._delta(item, state) for item in _items(piece, state.reader)]
        if piece.tokens and not said:
            said = [{"content": ""}]
        deltas += said
        logprobs = self._logprobs(piece)
        events = [self._event(piece.choice, delta, logprobs if said and delta is said[0] else None) for delta in deltas]
        if piece.finish_reason is not None:
            events.append(self._event(piece.choice, {}, None, "tool_calls" if state.calls else piece.finish_reason))
        return b"".join(events)

    def end(self, finish_reasons: Sequence[Ending], usage: Usage) -> bytes:
        """The event that counts tokens, if it was asked for."""
        if not self.include_usage:
            return b""
        return event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage_document(usage)})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.identifier, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, piece: Piece) -> dict[str, Any]:
        items = _items(piece, ToolCallReader() if self.reads_calls else None)
        calls = [item for item in items if isinstance(item, ToolCall)]
        text = "".join(item for item in items if isinstance(item, str))
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text if text.strip() else None, "tool_calls": [_call_document(call) for call in calls]}
        finish_reason = "tool_calls" if calls else piece.finish_reason
        return {"index": piece.choice, "message": message, "logprobs": self._logprobs(piece), "finish_reason": finish_reason}

    def _delta(self, item: str | ToolCall, state: _State) -> dict[str, Any]:
        if isinstance(item, str):
            return {"content": item}
        state.calls += 1
        return {"tool_calls": [{"index": state.calls - 1, **_call_document(item)}]}

    def _event(self, choice: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish_reason: str | None = None) -> bytes:
        usage: dict[str, Any] = {"usage": None} if self.include_usage else {}
        choices = [{"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}]
        return event({**self._head("chat.completion.chunk"), "choices": choices, **usage})

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        return {"content": [_token_document(token) for token in piece.tokens], "refusal": None}


def parse(call: Call, model_name: str, text: Text) -> tuple[Generation, ChatReply]:
    """Read one request; raises `BadRequestError` naming the field."""
    request = parameters.read(call, FIELDS, model_name)
    values, document = request.values, request.document
    if "messages" not in document:
        raise wrong("messages", "missing.")
    if values["max_tokens"] is not None and values["max_completion_tokens"] not in (None, values["max_tokens"]):
        raise wrong("max_tokens", "an older name of max_completion_tokens; give one of them.")
    if values["top_logprobs"] is not None and not values["logprobs"]:
        raise wrong("top_logprobs", "only together with logprobs: true.")
    parameters.one_of(document, "service_tier", ("auto", "default"))
    chat = Chat(messages.read_chat(document["messages"]), tools.definitions(document))
    generation = Generation(
        (chat,),
        max_tokens=values["max_completion_tokens"] or values["max_tokens"],
        default_max_tokens=None,
        logprobs=(values["top_logprobs"] or 0) if values["logprobs"] else None,
        schema=formats.answer_schema(document),
        **request.generation,
    )
    reads_calls = bool(chat.tools) and text.writes_tool_calls
    return generation, ChatReply(model_name, request.include_usage, values["logprobs"], reads_calls)


def _items(piece: Piece, reader: ToolCallReader | None) -> list[str | ToolCall]:
    if reader is None:
        return [piece.text] if piece.text else []
    return reader.feed(piece.text) + (reader.finish() if piece.finish_reason is not None else [])


def _call_document(call: ToolCall) -> dict[str, Any]:
    return {"id": call.identifier, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _token_document(token: TokenReport) -> dict[str, Any]:
    return {**_named(token.made), "top_logprobs": [_named(one) for one in token.top]}


def _named(token: TokenText) -> dict[str, Any]:
    return {"token": token.text, "bytes": list(token.raw), "logprob": max(token.logprob, LEAST_LOGPROB)}
