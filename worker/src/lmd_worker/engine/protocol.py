"""What an engine is: requests in, tokens out, one request at a time as its caller sees it.

An engine runs by itself on every rank. Rank 0 leads: only its methods take requests, the other ranks follow
inside the engine's own thread. Nothing here knows HTTP, TorchServe or torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length", "cancelled", "error"]


class Constraint(Protocol):
    """What one answer may look like, such as a grammar. Only the leading rank asks it, one token after the other."""

    def restrict(self, scores: Any) -> Any:
        """Return `scores`, a [1, vocabulary] float32 tensor, with minus infinity where a token may not come next."""
        ...

    def accept(self, token: int) -> None:
        """Go on to the state after this token, which `restrict` has allowed."""
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one request picks its tokens.

    `max_tokens` counts generated tokens. `temperature` 0 is greedy, and `top_p`, `top_k` and `seed` then have no effect.
    `top_k` 0 keeps the whole vocabulary. The same seed and prompt give the same answer whatever else is running.
    Generation ends, with reason "stop", after the first token in `stop_token_ids`. `logprobs` asks for the log-probability of
    each token made and of that many most likely ones beside it; None asks for none. `constraint` says which tokens may come.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities of one step, of the model's own scores before any sampling parameter: of the token that was
    made, and of the most likely tokens, best first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """What is new about a request since it was last asked: `tokens` in order, and why it ended, if it has.

    `logprobs` has one entry a token where the request asked for them and is empty otherwise.
    """

    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine has done since it started, and what it is doing now; on rank 0 alone do the counts of requests mean anything.

    Totals only grow. `turn_seconds_total` is the time spent in turns that computed something, so that idling does not count.
    A block of the cache holds the same number of tokens of one request each; engines without blocks have None for both.
    """

    running: int = 0
    waiting: int = 0
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    turns_total: int = 0
    turn_seconds_total: float = 0.0
    cache_blocks_used: int | None = None
    cache_blocks_total: int | None = None


@dataclass(frozen=True, slots=True)
class RequestTiming:
    """One request that the engine has begun and that has ended, in seconds.

    `queue_seconds` from its arrival until the engine took it, `first_token_seconds` from its arrival until its first token (None
    without one), `between_tokens_seconds` between each token and the next.
    """

    queue_seconds: float
    first_token_seconds: float | None
    between_tokens_seconds: tuple[float, ...]


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

    @property
    def capacity(self) -> int | None:
        """The most requests that may be open at a time, running and waiting; None where there is no limit."""
        ...

    def start(self) -> None:
        """Begin to run on this rank; returns at once."""
        ...

    def submit(self, request_id: str, prompt: Sequence[int], sampling: Sampling) -> None:
        """Queue one request. Raises `BadRequestError` for what would harm the engine or others; 429 where its queue is full."""
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

    def stats(self) -> EngineStats:
        """What it does and has done; cheap, from any thread, changes nothing."""
        ...

    def drain_timings(self) -> Sequence[RequestTiming]:
        """Take the timings of requests that have ended since the last call, oldest first; the last thousand are kept."""
        ...
