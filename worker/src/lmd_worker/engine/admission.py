"""What an engine refuses at its door: everything that would end it, or spoil an answer, for others too.

An engine computes all requests together, so a token out of its vocabulary or a prompt that outgrows the cache is not one request's
problem once it is inside. Pure; the length of the queue is the ledger's business.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmd_worker.engine.protocol import Sampling
from lmd_worker.errors import BadRequestError


def admit(prompt: Sequence[int], sampling: Sampling, *, context_tokens: int, vocabulary_size: int) -> None:
    """Raise `BadRequestError` with a sentence unless every engine can run this request to its end."""
    if not prompt or sampling.max_tokens < 1:
        raise BadRequestError("a request needs at least one prompt token and one token to generate.")
    if len(prompt) + sampling.max_tokens > context_tokens:
        raise BadRequestError(
            f"{len(prompt)} prompt tokens and {sampling.max_tokens} to generate are more than the context of {context_tokens}."
        )
    if min(prompt) < 0 or max(prompt) >= vocabulary_size:
        raise BadRequestError(f"a token id of the prompt is outside the vocabulary of {vocabulary_size}.")
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= vocabulary_size:
        raise BadRequestError(f"logprobs: {sampling.logprobs} is not between 0 and the vocabulary of {vocabulary_size}.")
