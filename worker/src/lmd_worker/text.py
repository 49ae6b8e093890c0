"""The door between text and tokens: what the transport needs of a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Text(Protocol):
    """A model's own way of turning text into token ids and back."""

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer (the model's end-of-sequence tokens)."""
        ...

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a plain prompt, with the special tokens the model expects at its start."""
        ...

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of `{"role", "content"}` messages, ending where the assistant speaks.

        Raises `BadRequestError` when the model has no chat template or the template refuses the messages.
        """
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids without special tokens; incomplete UTF-8 at the end decodes to U+FFFD."""
        ...
