"""An engine that echoes its prompt, a token a tick, and needs no model.

What a prompt begins with chooses the behaviour: `now` has every token ready at once,
`again` repeats until max_tokens, anything else is echoed once. ECHO_FAILURE makes a rank refuse to load.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lmd_worker.engine.protocol import Progress, Sampling
from lmd_worker.errors import RankError
from lmd_worker.loading import Loaded
from lmd_worker.report import RankReport
from lmd_worker.settings import Settings

END = 256
TICK_SECONDS = 0.02
RANK = int(os.environ.get("RANK", "0"))


class Bytes:
    stop_token_ids = frozenset({END})

    def encode(self, prompt: str) -> list[int]:
        return list(prompt.encode())

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return self.encode(messages[-1]["content"])

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token != END).decode(errors="replace")


class EchoEngine:
    context_tokens = 4096
    vocabulary_size = END + 1

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._planned: dict[str, list[int]] = {}
        self._made: dict[str, list[int]] = {}
        self._cancelled = Path(os.environ["LMD_RUN_DIR"]) / "cancelled"

    def start(self) -> None:
        threading.Thread(target=self._run).start()  # no daemon, as in a real engine

    def submit(self, request_id: str, prompt: Sequence[int], sampling: Sampling) -> None:
        again = bytes(prompt).startswith(b"again")
        plan = (list(prompt) * sampling.max_tokens if again else [*prompt, END])[: sampling.max_tokens]
        with self._news:
            now = bytes(prompt).startswith(b"now")
            self._made[request_id], self._planned[request_id] = (plan, []) if now else ([], plan)

    def wait(self, request_ids: Iterable[str], timeout_seconds: float) -> None:
        with self._news:
            self._news.wait_for(lambda: any(self._made.get(request_id) for request_id in request_ids), timeout_seconds)

    def progress(self, request_id: str) -> Progress:
        with self._news:
            tokens, self._made[request_id] = tuple(self._made[request_id]), []
            if self._planned[request_id]:
                return Progress(tokens)
            del self._made[request_id], self._planned[request_id]
            return Progress(tokens, "stop" if tokens[-1:] == (END,) else "length")

    def cancel(self, request_id: str) -> None:
        with self._news:
            if self._planned.pop(request_id, None) is not None:
                del self._made[request_id]
                with self._cancelled.open("a") as file:
                    file.write(f"{request_id}\n")

    def failure(self) -> str | None:
        return "The echo engine was told to fail." if (self._cancelled.parent / f"fail-{RANK}").exists() else None

    def _run(self) -> None:
        while True:
            time.sleep(TICK_SECONDS)
            with self._news:
                for request_id, plan in self._planned.items():
                    if plan:
                        self._made[request_id].append(plan.pop(0))
                self._news.notify_all()


def load(settings: Settings) -> Loaded:
    if os.environ.get("ECHO_FAILURE") == str(RANK):
        raise RankError("the echo engine was told not to load.")
    reports = [
        RankReport(rank, settings.tensor, settings.strategy, settings.tensor, "cpu", "host", settings.dtype, 1, 2, 2, 1, os.getpid(), {})
        for rank in range(settings.tensor)
    ]
    engine = EchoEngine()
    engine.start()
    return Loaded(RANK, engine, Bytes(), reports)
