"""`v1/completions`: texts or token ids to go on with, in OpenAI's shape.

Source of the shape: the `openai` package, types/completion.py and types/completion_choice.py (3.54.0).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lmd_worker.api import documents, fields, parameters
from lmd_worker.api.documents import Document, wrong
from lmd_worker.api.fields import Fields
from lmd_worker.api.generation import LEAST_LOGPROB, Call, Ending, Generation, Piece, TokenReport, TokenText, Usage, encode, event
from lmd_worker.api.prompts import Plain, Prompt

DEFAULT_MAX_TOKENS = 16
"""OpenAI's own default of this route."""
WHAT = "a string, a list of strings, a list of token ids, or a list of such lists"
FIELDS: Fields = {
    **parameters.IGNORED,
    **parameters.SAMPLING,
    "prompt": fields.raw,
    "logprobs": fields.integer(0, parameters.MOST_LOGPROBS),
    "echo": fields.boolean(),
    "best_of": fields.integer(1, parameters.MOST_CHOICES),
    "suffix": fields.only("", "text before a given end is not supported; leave it out."),
}


@dataclass(frozen=True, slots=True)
class CompletionReply:
    """Writes answers of this route."""

    model: str
    include_usage: bool
    with_logprobs: bool
    identifier: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> bytes:
        """One `text_completion` with every choice."""
        return encode({**self._head(), "choices": [self._choice(piece) for piece in pieces], "usage": usage_document(usage)})

    def events(self, piece: Piece) -> bytes:
        """One event with what is new of one choice."""
        usage: dict[str, Any] = {"usage": None} if self.include_usage else {}
        return event({**self._head(), "choices": [self._choice(piece)], **usage})

    def end(self, finish_reasons: Sequence[Ending], usage: Usage) -> bytes:
        """The event that counts tokens, if it was asked for."""
        return event({**self._head(), "choices": [], "usage": usage_document(usage)}) if self.include_usage else b""

    def _head(self) -> dict[str, Any]:
        return {"id": self.identifier, "object": "text_completion", "created": self.created, "model": self.model}

    def _choice(self, piece: Piece) -> dict[str, Any]:
        logprobs = _logprobs(piece.tokens) if self.with_logprobs else None
        return {"index": piece.choice, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish_reason}


def parse(call: Call, model_name: str) -> tuple[Generation, CompletionReply]:
    """Read one request; raises `BadRequestError` naming the field."""
    request = parameters.read(call, FIELDS, model_name)
    values = request.values
    prompts = _prompts(request.document)
    if values["best_of"] not in (None, values["n"]):
        raise wrong("best_of", f"must be n ({values['n']}) or left out; choosing among more answers than are returned is not supported.")
    if len(prompts) * values["n"] > parameters.MOST_CHOICES:
        raise wrong("prompt", f"{len(prompts)} prompts with n {values['n']} are more than {parameters.MOST_CHOICES} answers; send fewer.")
    if values["echo"] and values["logprobs"] is not None:
        raise wrong("echo", "log-probabilities of the prompt are not computed; use echo or logprobs, not both.")
    generation = Generation(
        prompts,
        max_tokens=values["max_tokens"],
        default_max_tokens=DEFAULT_MAX_TOKENS,
        logprobs=values["logprobs"],
        echo=values["echo"],
        **request.generation,
    )
    return generation, CompletionReply(model_name, request.include_usage, values["logprobs"] is not None)


def usage_document(usage: Usage) -> dict[str, int]:
    """Return the counts as OpenAI writes them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _prompts(document: Document) -> tuple[Prompt, ...]:
    if "prompt" not in document:
        raise wrong("prompt", "missing.")
    value = document["prompt"]
    if isinstance(value, str):
        return (_text(value, "prompt"),)
    given = documents.items(value, "prompt", WHAT)
    if _is_token(given[0]):
        return (_tokens(given, "prompt"),)
    if len(given) > parameters.MOST_CHOICES:
        raise wrong("prompt", f"at most {parameters.MOST_CHOICES} prompts, got {len(given)}.")
    read = _tokens if isinstance(given[0], list) else _text
    return tuple(read(item, f"prompt[{index}]") for index, item in enumerate(given))


def _text(value: Any, where: str) -> Plain:
    if not documents.text(value, where):
        raise wrong(where, "must not be empty.")
    return Plain(value)


def _tokens(value: Any, where: str) -> tuple[int, ...]:
    tokens = documents.items(value, where, "a list of token ids")
    for index, token in enumerate(tokens):
        if not _is_token(token):
            raise wrong(f"{where}[{index}]", f"must be a token id, got {documents.kind(token)}.")
    return tuple(tokens)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _logprobs(tokens: Sequence[TokenReport]) -> dict[str, Any]:
    """Return the older of OpenAI's two shapes: lists side by side. The token made is always among the likely ones."""
    return {
        "tokens": [_name(token.made) for token in tokens],
        "token_logprobs": [_figure(token.made) for token in tokens],
        "top_logprobs": [{_name(one): _figure(one) for one in (*token.top, token.made)} for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def _name(token: TokenText) -> str:
    """Return a token's text; bytes that are no text by themselves are spelt out, so that names stay different."""
    try:
        return token.raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.raw)


def _figure(token: TokenText) -> float:
    return max(token.logprob, LEAST_LOGPROB)
