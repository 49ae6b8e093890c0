"""Answers that keep to a JSON schema: llguidance's matcher as a `Constraint`.

The library refuses what it cannot keep, in words, before anything is generated; it never lets a token through that it would
regret. Source: llguidance 1.9, its `LLMatcher` and docs/json_schema.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer

from lmd_worker.engine.protocol import Constraint
from lmd_worker.errors import BadRequestError

OPTIONS = {
    "whitespace_flexible": False,  # a small model may go on with blanks for ever
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": False,
    "lenient": False,
}
"""Win over what a schema says under `x-guidance`."""


class Grammar:
    """The state of one answer; refuses no token by itself, it only takes them out of the scores."""

    def __init__(self, matcher: Any, vocabulary_size: int) -> None:
        self._matcher = matcher
        self._vocabulary_size = vocabulary_size

    def restrict(self, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores`, [1, vocabulary] float32 on any device, with minus infinity where a token may not come next.

        Raises `RuntimeError` when the matcher has failed, as on a grammar that turns out too complex.
        """
        if self._matcher.is_error():
            raise RuntimeError(f"the grammar of an answer failed: {_first_line(self._matcher.get_error())}")
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8).to(scores.device)
        allowed = (bits[:, None] >> torch.arange(8, device=scores.device, dtype=torch.uint8)) & 1
        known = min(self._vocabulary_size, scores.shape[-1])
        mask = torch.zeros_like(scores, dtype=torch.bool)
        mask[0, :known] = allowed.flatten()[:known].bool()
        return scores.masked_fill(~mask, float("-inf"))

    def accept(self, token: int) -> None:
        """Go on to the state after this token."""
        self._matcher.consume_token(token)


def compile_schema(tokenizer: LLTokenizer, schema: Mapping[str, Any]) -> Callable[[], Constraint]:
    """Return what makes a constraint for one answer; raises `BadRequestError` with what is not supported."""
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=OPTIONS)  # type: ignore[arg-type]  # a TypedDict
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    if matcher.is_error():
        raise BadRequestError(
            f"response_format: this JSON schema is not supported: {_first_line(matcher.get_error())}.",
            param="response_format",
        )
    return lambda: Grammar(matcher.deep_copy(), tokenizer.vocab_size)


def _first_line(error: str) -> str:
    return (error.splitlines() or ["unknown"])[0][:200].rstrip(".: ")
