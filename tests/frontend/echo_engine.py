"""An engine that echoes its prompt, a token a tick, and needs no model.

What a prompt begins with chooses the behaviour: `now` has every token ready at once, `again` repeats until max_tokens, `seed` answers
the seed it was given, `busy` is refused as by a full queue, anything else is echoed once. ECHO_FAILURE makes a rank refuse to load.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmd_worker.engine.protocol import Constraint, EngineStats, Progress, Sampling, TokenLogprobs
from lmd_worker.errors import BadRequestError, RankError
from lmd_worker.loading import Loaded
from lmd_worker.report import RankReport
from lmd_worker.settings import Settings

END = 256
TICK_SECONDS = 0.02
RANK = int(os.environ.get("RANK", "0"))
RETRY_AFTER_SECONDS = 7


class Bytes:
    """A token a byte. A chat is its last message; tools change nothing."""

    stop_token_ids = frozenset({END})
    writes_tool_calls = True
    eos_token_id = END
    bos_token_id = None
    tokens = [*(bytes([byte]) for byte in range(END)), b"<|end|>"]
    special_token_ids = [END]

    def __call__(self, text: bytes | str) -> list[int]:
        """What llguidance asks of a tokenizer."""
        return list(text if isinstance(text, bytes) else text.encode())

    def encode(self, prompt: str, *, special_tokens: bool = True) -> list[int]:
        return list(prompt.encode())

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        return self.encode(messages[-1]["content"])

    def decode(self, tokens: Sequence[int], *, special_tokens: bool = False) -> str:
        return b"".join(self.tokens[token] for token in tokens if special_tokens or token != END).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return self.tokens[token]

    def grammar(self, schema: Mapping[str, Any]) -> Callable[[], Constraint]:
        import llguidance

        from lmd_worker.engine.grammar import compile_schema

        return compile_schema(llguidance.LLTokenizer(llguidance.TokenizerWrapper(self), eos_token=END), schema)


class EchoEngine:
    context_tokens = 4096
    vocabulary_size = END + 1
    capacity = None

    def __init__(self, run_directory: Path, *, instant: bool = False) -> None:
        self._news = threading.Condition()
        self._planned: dict[str, list[int]] = {}
        self._made: dict[str, list[int]] = {}
        self._logprobs: dict[str, int | None] = {}
        self._cancelled = run_directory / "cancelled"
        self._instant = instant

    @property
    def running(self) -> int:
        return len(self._planned)

    def start(self) -> None:
        threading.Thread(target=self._run).start()  # no daemon, as in a real engine

    def submit(self, request_id: str, prompt: Sequence[int], sampling: Sampling) -> None:
        plan = _plan(prompt, sampling)
        with self._news:
            now = self._instant or bytes(token for token in prompt if token != END).startswith(b"now")
            self._made[request_id], self._planned[request_id] = (plan, []) if now else ([], plan)
            self._logprobs[request_id] = sampling.logprobs

    def wait(self, request_ids: Iterable[str], timeout_seconds: float) -> None:
        with self._news:
            self._news.wait_for(lambda: any(self._made.get(request_id) for request_id in request_ids), timeout_seconds)

    def progress(self, request_id: str) -> Progress:
        with self._news:
            tokens, self._made[request_id] = tuple(self._made[request_id]), []
            count = self._logprobs[request_id]
            logprobs = () if count is None else tuple(_logprobs(token, count) for token in tokens)
            if self._planned[request_id]:
                return Progress(tokens, logprobs=logprobs)
            self._forget(request_id)
            return Progress(tokens, "stop" if tokens[-1:] == (END,) else "length", logprobs=logprobs)

    def cancel(self, request_id: str) -> None:
        with self._news:
            if request_id in self._planned:
                self._forget(request_id)
                with self._cancelled.open("a") as file:
                    file.write(f"{request_id}\n")

    def failure(self) -> str | None:
        return "The echo engine was told to fail." if (self._cancelled.parent / f"fail-{RANK}").exists() else None

    def stats(self) -> EngineStats:
        return EngineStats(running=self.running)

    def drain_timings(self) -> tuple[()]:
        return ()

    def _forget(self, request_id: str) -> None:
        del self._made[request_id], self._planned[request_id], self._logprobs[request_id]

    def _run(self) -> None:
        while True:
            time.sleep(TICK_SECONDS)
            with self._news:
                for request_id, plan in self._planned.items():
                    if plan:
                        self._made[request_id].append(plan.pop(0))
                self._news.notify_all()


def _plan(prompt: Sequence[int], sampling: Sampling) -> list[int]:
    """Return the whole answer; one that is constrained is what the constraint leaves of the echo."""
    said = bytes(token for token in prompt if token != END)
    if said.startswith(b"busy"):
        raise BadRequestError("The queue is full; try again later.", status=429, retry_after_seconds=RETRY_AFTER_SECONDS)
    if said.startswith(b"seed"):
        prompt = list(str(sampling.seed).encode())
    again = said.startswith(b"again")
    plan = (list(prompt) * sampling.max_tokens if again else [*prompt, END])[: sampling.max_tokens]
    return plan if sampling.constraint is None else _constrained(plan, sampling.max_tokens, sampling.constraint)


def _constrained(plan: Sequence[int], max_tokens: int, constraint: Constraint) -> list[int]:
    import torch

    made: list[int] = []
    while len(made) < max_tokens and made[-1:] != [END]:
        scores = torch.zeros(1, END + 1)
        scores[0, list(b'"}]')] = 0.5  # ends what it has begun
        scores[0, END] = 1.0
        if len(made) < len(plan):
            scores[0, plan[len(made)]] = 2.0
        made.append(int(constraint.restrict(scores).argmax()))
        constraint.accept(made[-1])
    return made


def _logprobs(token: int, count: int) -> TokenLogprobs:
    """Figures that tell which token they belong to."""
    near = [(token + step) % END for step in range(count)]
    return TokenLogprobs(-token / 100, tuple((one, -token / 100 - step) for step, one in enumerate(near)))


def load(settings: Settings) -> Loaded:
    if os.environ.get("ECHO_FAILURE") == str(RANK):
        raise RankError("the echo engine was told not to load.")
    reports = [
        RankReport(rank, settings.tensor, settings.strategy, settings.tensor, "cpu", "host", settings.dtype, 1, 2, 2, 1, os.getpid(), {})
        for rank in range(settings.tensor)
    ]
    engine = EchoEngine(Path(os.environ["LMD_RUN_DIR"]))
    engine.start()
    return Loaded(RANK, engine, Bytes(), reports)
