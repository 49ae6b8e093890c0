"""Asking pods what their ranks report: once each, a few times at most, few at a time, and believing nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from lmd_operator.local.ports import free_ports
from lmd_operator.observed import PodState, Verdict
from lmd_operator.planning.plan import Plan
from lmd_operator.runtime import reports
from lmd_operator.runtime.reports import LARGEST_ANSWER_BYTES, MOST_PODS, TRIES, ReportReader

KEY = ("n", "m")
PLAN = Plan("None", 1, 0, 1, "asked for")
RANK = {"rank": 0, "world_size": 1, "strategy": "None", "degree": 1, "device_id": "cpu of a", "parameter_bytes": 7, "model_bytes": 7}
REPORT = json.dumps({"ranks": [RANK]}).encode()
WAIT_SECONDS = 30

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def a_pod(name: str = "a", address: str = "127.0.0.1", restarts: int = 0) -> PodState:
    return PodState(name, "r", False, False, True, True, "", True, True, restarts, "", "", "", 0, "", address=address)


class Bench:
    """A reader, and what it has told."""

    def __init__(self, port: int) -> None:
        self.told: list[tuple[str, str]] = []
        self.reader = ReportReader(self.told.append, time.monotonic, port)

    def ask(self, *pods: PodState, key: tuple[str, str] = KEY) -> dict[str, Verdict | None]:
        return self.reader.ask(key, PLAN, pods)

    async def until_told(self, times: int = 1) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.told) < times:
                await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def a_bench(port: int) -> AsyncIterator[Bench]:
    bench = Bench(port)
    running = asyncio.create_task(bench.reader.run())
    try:
        yield bench
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await bench.reader.close()


@contextlib.asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[int]:
    """Answer everything on a port of this machine."""
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0)  # type: ignore[arg-type]
    await runner.setup()
    (port,) = free_ports(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield port
    finally:
        await runner.cleanup()


def always(**response: Any) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(**response)

    return answer


def verdict_of(answer: Answer) -> Verdict:
    """Return what is made of the answer of the only replica."""

    async def run() -> dict[str, Verdict | None]:
        async with serving(answer) as port, a_bench(port) as bench:
            bench.ask(a_pod())
            await bench.until_told()
            return bench.ask(a_pod())

    (verdict,) = asyncio.run(run()).values()
    assert verdict is not None
    return verdict


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(reports, "GROWTH", 1.0)


def test_a_replica_is_asked_once_and_without_any_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    asked: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request)
        return web.Response(body=REPORT)

    async def run() -> dict[str, Verdict | None]:
        async with serving(answer) as port, a_bench(port) as bench:
            assert bench.ask(a_pod()) == {"a": None}
            assert bench.ask(a_pod()) == {"a": None}, "still asked"
            await bench.until_told()
            bench.ask(a_pod())
            assert bench.told == [KEY]
            return bench.ask(a_pod())

    (verdict,) = asyncio.run(run()).values()
    assert verdict is not None
    assert (verdict.status, verdict.reason) == ("True", "AsPlanned")
    (request,) = asked
    assert (request.method, request.path) == ("GET", "/report")
    assert {"authorization", "cookie"}.isdisjoint(name.lower() for name in request.headers)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(always(body=b"[" * 5000), "the answer is no JSON", id="too deep"),
        pytest.param(always(body=b"\xff\xfe{"), "the answer is no JSON", id="no text"),
        pytest.param(always(body=gzip.compress(REPORT), headers={"Content-Encoding": "gzip"}), "the answer is no JSON", id="packed"),
        pytest.param(always(body=b'{"ranks": 7}'), "what answers there is no report of ranks", id="another document"),
        pytest.param(always(body=b" " * (LARGEST_ANSWER_BYTES + 1)), "the answer is larger than 262144 bytes", id="too large"),
        pytest.param(always(status=404), "the answer is HTTP status 404", id="nothing there"),
        pytest.param(always(status=302, headers={"Location": "/elsewhere"}), "the answer is HTTP status 302", id="a way elsewhere"),
    ],
)
def test_what_is_no_report_says_nothing_of_the_ranks(answer: Answer, words: str) -> None:
    verdict = verdict_of(answer)
    assert (verdict.status, verdict.reason) == ("Unknown", "NotReported")
    assert words in verdict.message


def test_the_largest_answer_is_read_whole() -> None:
    verdict = verdict_of(always(body=REPORT.ljust(LARGEST_ANSWER_BYTES)))
    assert verdict.status == "True"


def test_one_that_never_answers_is_asked_a_few_times_and_then_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    async def run() -> dict[str, Verdict | None]:
        nonlocal tries
        async with a_bench(free_ports(1)[0]) as bench:
            get = bench.reader._client.get

            async def counted(address: str) -> tuple[int, bytes | None]:
                nonlocal tries
                tries += 1
                return await get(address)

            monkeypatch.setattr(bench.reader._client, "get", counted)
            assert bench.ask(a_pod()) == {"a": None}
            await bench.until_told()
            assert bench.ask(a_pod()) == {}, "given up"
            await asyncio.sleep(0.05)
            assert bench.told == [KEY]
            return bench.ask(a_pod())

    assert asyncio.run(run()) == {}
    assert tries == TRIES


def test_one_that_answers_late_is_heard() -> None:
    answers = iter([503, 503])

    async def answer(_: web.Request) -> web.Response:
        status = next(answers, 200)
        return web.Response(status=status, body=REPORT if status == 200 else b"")

    verdict = verdict_of(answer)
    assert verdict.status == "True"


def test_a_container_that_started_again_is_asked_again_and_one_that_is_gone_is_forgotten() -> None:
    asked = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(body=REPORT)

    async def run() -> None:
        async with serving(answer) as port, a_bench(port) as bench:
            bench.ask(a_pod())
            await bench.until_told()
            assert bench.ask(a_pod(restarts=1)) == {"a": None}
            await bench.until_told(2)
            assert bench.ask() == {}
            assert bench.reader._known == {}
            bench.ask(a_pod())
            bench.reader.forget(KEY)
            bench.ask(a_pod(), key=("n", "other"))
            await bench.until_told(3)
            assert bench.told == [KEY, KEY, ("n", "other")]

    asyncio.run(run())
    assert asked == 3


def test_few_are_asked_at_a_time_and_of_one_object_not_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "AT_ONCE", 3)
    running, most = 0, 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return web.Response(body=REPORT)

    async def run() -> int:
        async with serving(answer) as port, a_bench(port) as bench:
            many = [a_pod(f"pod-{number}") for number in range(MOST_PODS + 4)]
            bench.ask(*many)
            await bench.until_told(MOST_PODS)
            return len(bench.ask(*many))

    assert asyncio.run(run()) == MOST_PODS
    assert most == 3


def test_addresses_of_both_families_are_asked() -> None:
    async def run() -> str:
        async with a_bench(1) as bench:
            asked: list[str] = []

            class Session:
                def get(self, url: str, **_: object) -> None:
                    asked.append(url)
                    raise OSError

                async def close(self) -> None: ...

            bench.reader._client._session = Session()  # type: ignore[assignment]
            await bench.reader._client.get("fd00::1")
            return asked[0]

    assert asyncio.run(run()) == "http://[fd00::1]:1/report"
