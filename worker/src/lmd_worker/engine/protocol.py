"""What an engine is: requests in, tokens out, one request at a time as its caller sees it.

An engine runs by itself on every rank. Rank 0 leads: only its methods take requests, the other ranks follow
inside the engine's own thread. Nothing here knows HTTP, TorchServe or torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one request picks its tokens.

    `max_tokens` counts generated tokens. `temperature` 0 is greedy, and `top_p`, `top_k` and `seed` then have no effect.
    `top_k` 0 keeps the whole vocabulary. The same seed and prompt give the same answer whatever else is running.
    Generation ends, with reason "stop", after the first token in `stop_token_ids`.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Progress:
    """What is new about a request since it was last asked: `tokens` in order, and why it ended, if it has."""

    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None


class Engine(Protocol):
    """The seam between the transport and the model; the fake for tests implements it in memory."""

    @property
    def context_tokens(self) -> int:
        """The most tokens of prompt and answer together."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Token ids are in range(vocabulary_size)."""
        ...

    def start(self) -> None:
        """Begin to run on this rank; returns at once."""
        ...

    def submit(self, request_id: str, prompt: Sequence[int], sampling: Sampling) -> None:
        """Queue one request. The caller has checked length, vocabulary and that the id is new."""
        ...

    def wait(self, request_ids: Iterable[str], timeout_seconds: float) -> None:
        """Return when any of these has news, or after the timeout."""
        ...

    def progress(self, request_id: str) -> Progress:
        """Take the news of one request. After a finish reason the id is forgotten."""
        ...

    def cancel(self, request_id: str) -> None:
        """Forget a request; its tokens stop at the next turn. Unknown ids are fine."""
        ...

    def failure(self) -> str | None:
        """One sentence if the engine is dead or stalled and will never answer again, else None."""
        ...
