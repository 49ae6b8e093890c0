"""What every engine of ours has in common: a thread a rank, a ledger of requests, and a sentence when it is over.

Rank 0 leads and the other ranks follow, each inside its own thread; how is the subclass's. All that callers see of an engine is here.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch

from lmd_worker.engine.admission import admit
from lmd_worker.engine.ledger import Ledger, News, Ticket
from lmd_worker.engine.protocol import EngineStats, FinishReason, Progress, RequestTiming, Sampling
from lmd_worker.engine.sampling import Choice, Chooser
from lmd_worker.ranks import Group

HEARTBEAT_SECONDS = 0.5
"""How often an idle rank 0 speaks, so that no peer's wait for it outlives the collective timeout."""

log = logging.getLogger(__name__)


class RunningEngine(ABC):
    """An `Engine` that runs in one thread on every rank.

    `concurrency` requests are decoded together and `queue_size` more may wait; None lets any number wait.
    """

    def __init__(
        self,
        group: Group,
        *,
        context_tokens: int,
        vocabulary_size: int,
        concurrency: int,
        stall_timeout_seconds: float,
        queue_size: int | None = None,
    ) -> None:
        self._group = group
        self._context_tokens = context_tokens
        self._vocabulary_size = vocabulary_size
        self._concurrency = concurrency
        self._stall_timeout_seconds = stall_timeout_seconds
        self._capacity = None if queue_size is None else concurrency + queue_size
        self._ledger = Ledger(self._capacity)
        self._end: str | None = None
        self._last_turn: float | None = None
        self._turns = 0
        self._turn_seconds = 0.0
        self._thread = threading.Thread(target=self.run, name="engine", daemon=True)

    @property
    def context_tokens(self) -> int:
        """The most tokens of prompt and answer together."""
        return self._context_tokens

    @property
    def vocabulary_size(self) -> int:
        """Token ids are in range(vocabulary_size)."""
        return self._vocabulary_size

    @property
    def capacity(self) -> int | None:
        """The most requests that may be open at a time, running and waiting; None where there is no limit."""
        return self._capacity

    def start(self) -> None:
        """Begin to run on this rank, in a thread of its own; returns at once."""
        self._thread.start()

    def run(self, begun: Callable[[], None] | None = None) -> None:
        """Run on this rank in the thread that calls, until the engine is stopped or fails; `begun` is called when others may use it."""
        self._thread = threading.current_thread()
        self._beat()
        if begun is not None:
            begun()
        self._run()

    def submit(self, request_id: str, prompt: Sequence[int], sampling: Sampling) -> None:
        """Queue one request. Raises `BadRequestError` for what would harm the engine or others, 429 when the queue is full."""
        admit(prompt, sampling, context_tokens=self._context_tokens, vocabulary_size=self._vocabulary_size)
        self._ledger.add(Ticket(request_id, tuple(prompt), sampling, Chooser(sampling, self._group.device)))

    def wait(self, request_ids: Iterable[str], timeout_seconds: float) -> None:
        """Return when any of these has news, or after the timeout."""
        self._ledger.wait(request_ids, timeout_seconds)

    def progress(self, request_id: str) -> Progress:
        """Take the news of one request. After a finish reason the id is forgotten; an unknown one counts as cancelled."""
        return self._ledger.progress(request_id)

    def cancel(self, request_id: str) -> None:
        """Forget a request; its tokens stop at the next turn. Unknown ids are fine."""
        self._ledger.cancel(request_id)

    def failure(self) -> str | None:
        """One sentence if the engine is dead or stalled and will never answer again, else None."""
        if self._end is not None or self._last_turn is None:
            return self._end
        if not self._thread.is_alive():
            return self._end or f"Rank {self._group.rank}: the engine's thread is gone. All ranks must restart."
        still = time.monotonic() - self._last_turn
        if still > self._stall_timeout_seconds:
            return (
                f"Rank {self._group.rank}: no turn of the engine for {still:.0f} s "
                f"(stall timeout {self._stall_timeout_seconds:g} s); a rank hangs. All ranks must restart."
            )
        return None

    def stats(self) -> EngineStats:
        """What it does and has done; cheap, from any thread, changes nothing."""
        totals = self._ledger.totals()
        used, blocks = self._cache_blocks()
        return EngineStats(
            running=totals.running,
            waiting=totals.waiting,
            prompt_tokens_total=totals.prompt_tokens,
            generation_tokens_total=totals.generation_tokens,
            turns_total=self._turns,
            turn_seconds_total=self._turn_seconds,
            cache_blocks_used=used,
            cache_blocks_total=blocks,
        )

    def drain_timings(self) -> Sequence[RequestTiming]:
        """Take the timings of requests that have ended since the last call, oldest first."""
        return self._ledger.drain_timings()

    def stop(self, timeout_seconds: float = 30.0) -> None:
        """End the loop, on rank 0 for all ranks, running requests included; return when this rank's thread has ended."""
        if self._group.rank == 0:
            self._ledger.close(self._stopped())
        self._thread.join(timeout_seconds)

    @abstractmethod
    def _lead(self) -> None:
        """Run on rank 0 until the ledger is closed, and tell the others to stop."""

    @abstractmethod
    def _follow(self) -> None:
        """Run on any other rank until rank 0 says stop."""

    def _cache_blocks(self) -> tuple[int | None, int | None]:
        """Return (used, all) blocks of the cache, where it has blocks."""
        return None, None

    def _run(self) -> None:
        try:
            if self._group.device.type == "cuda":
                torch.cuda.set_device(self._group.device)  # a new thread begins on device 0
            with torch.inference_mode():
                if self._group.rank == 0:
                    self._lead()
                else:
                    self._follow()
            end = self._stopped()
        except Exception as error:  # the one place where any failure becomes a sentence; the watchdog ends the process on it
            log.exception("rank %d: engine failed", self._group.rank)
            reason = (str(error).splitlines() or [""])[0].rstrip(".")
            end = f"Rank {self._group.rank}: the engine failed: {type(error).__name__}: {reason}. All ranks must restart."
        self._end = end
        self._ledger.close(end)

    def _beat(self) -> None:
        self._last_turn = time.monotonic()

    def _count_turn(self, seconds: float) -> None:
        self._turns += 1
        self._turn_seconds += seconds

    def _stopped(self) -> str:
        return f"Rank {self._group.rank}: the engine was stopped."


def news_of(ticket: Ticket, choice: Choice) -> News:
    """Return what a choice means for its request: a token, and whether it is the last."""
    if choice.error is not None:
        return News(ticket, finish_reason="error", error=choice.error)
    reason: FinishReason | None = None
    if choice.token in ticket.sampling.stop_token_ids:
        reason = "stop"
    elif ticket.remaining == 1:
        reason = "length"
    return News(ticket, choice.token, reason, logprobs=choice.logprobs)
