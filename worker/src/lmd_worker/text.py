"""The door between text and tokens: what the transport needs of a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from lmd_worker.engine.protocol import Constraint


class Text(Protocol):
    """A model's own way of turning text into token ids and back."""

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer (the model's end-of-sequence tokens)."""
        ...

    @property
    def writes_tool_calls(self) -> bool:
        """Whether the chat template teaches the model to write tool calls as `api.tools` reads them."""
        ...

    def encode(self, prompt: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of a plain prompt; with the special tokens the model expects at its start, unless told otherwise."""
        ...

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Token ids of `{"role", "content"}` messages, ending where the assistant speaks.

        Raises `BadRequestError` when the model has no chat template, or the template refuses the messages or takes no tools.
        """
        ...

    def decode(self, tokens: Sequence[int], *, special_tokens: bool = False) -> str:
        """Text of token ids, without special tokens unless asked; incomplete UTF-8 at the end decodes to U+FFFD."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text, as UTF-8, which may be half a character; a special token's own name."""
        ...

    def grammar(self, schema: Mapping[str, Any]) -> Callable[[], Constraint]:
        """Return what makes a constraint to the JSON of a schema, one for each answer.

        Raises `BadRequestError` when the schema, or this tokenizer, does not allow it.
        """
        ...
