"""What a model is asked: a text, token ids, or a chat; and the one way from each to token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmd_worker.api.documents import wrong
from lmd_worker.text import Text


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat. `more` holds what a template may want beside it, such as `tool_calls`."""

    role: str
    content: str
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, and the tools the model may call in it."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Plain:
    """A text to go on with. `special_tokens` puts those before it that the model expects at the start."""

    text: str
    special_tokens: bool = True


Prompt = Plain | Chat | tuple[int, ...]


def tokens(prompt: Prompt, text: Text, vocabulary_size: int) -> list[int]:
    """Return the prompt's token ids, at least one and all within the vocabulary; raises `BadRequestError` otherwise."""
    found = _encode(prompt, text)
    where = "messages" if isinstance(prompt, Chat) else "prompt"
    if not found:
        raise wrong(where, "holds no tokens.")
    if min(found) < 0 or max(found) >= vocabulary_size:
        raise wrong(where, f"holds a token the model does not know; its vocabulary has {vocabulary_size} tokens.")
    return found


def _encode(prompt: Prompt, text: Text) -> list[int]:
    if isinstance(prompt, Plain):
        return text.encode(prompt.text, special_tokens=prompt.special_tokens)
    if isinstance(prompt, Chat):
        turns = [{"role": message.role, "content": message.content, **message.more} for message in prompt.messages]
        return text.encode_chat(turns, tools=prompt.tools)
    return list(prompt)
