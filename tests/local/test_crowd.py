"""64 clients at once among others that talk nonsense or leave: each gets, token for token, what one process gives it alone."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from .conftest import Plain, Serving

pytestmark = pytest.mark.model

WORDS = ("sea", "king", "stone", "once", "seven", "light", "house", "river", "north", "apple")
GOOD, BAD, LEAVING = 64, 22, 22
"""A fifth of all are invalid, and a fifth leave."""
CONCURRENCY, QUEUE = 8, 100
FLOOD = 400
SEEDED = 12
INVALID = (
    {"prompt": ""},
    {"prompt": 5},
    {"prompt": "x", "max_tokens": -1},
    {"prompt": "x", "temperature": "hot"},
    {"prompt": "word " * 5000},
    {"promt": "x"},
    {"prompt": "x", "n": 0},
)


def greedy_requests() -> list[dict[str, Any]]:
    """Prompts of 1 to 40 words, answers of 1 to 8 tokens."""
    chance = random.Random(3)
    return [
        {"prompt": " ".join(chance.choices(WORDS, k=chance.randint(1, 40))), "max_tokens": chance.randint(1, 8), "temperature": 0}
        for _ in range(GOOD - SEEDED)
    ]


def seeded_requests() -> list[dict[str, Any]]:
    return [{"prompt": "Once upon a time", "max_tokens": 12, "temperature": 1.2, "seed": seed} for seed in range(SEEDED)]


@pytest.fixture(scope="module", params=["short_smollm2", pytest.param("smollm2", marks=pytest.mark.long)])
def model(request: pytest.FixtureRequest) -> Path:
    """The first layers of the model, or all of them."""
    directory: Path = request.getfixturevalue(request.param)
    return directory


@pytest.fixture(scope="module")
def expected(model: Path) -> list[tuple[str, int]]:
    """Each greedy request's text and number of tokens, by plain transformers, one at a time."""
    plain = Plain(model)
    return [plain.answer(request["prompt"], request["max_tokens"]) for request in greedy_requests()]


@pytest.fixture(
    scope="module",
    params=[pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long), 3],
    ids=lambda ranks: f"{ranks} ranks",
)
def crowded(
    request: pytest.FixtureRequest, model: Path, start: Callable[..., Serving], example: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """A server of so many ranks."""
    manifest = yaml.safe_load(example.read_text())
    manifest["spec"]["model"] = {"source": {"path": {"path": f"/models/{model.name}"}}}
    manifest["spec"]["parallelism"] = {"strategy": "None" if request.param == 1 else "DeepSpeed", "tensor": request.param}
    manifest["spec"]["engine"] |= {"concurrency": CONCURRENCY, "torchServe": {"jobQueueSize": QUEUE}}
    path = tmp_path_factory.mktemp("crowd") / "manifest.yaml"
    path.write_text(yaml.safe_dump(manifest))
    serving = start("--models", str(model.parent), manifest=path)
    serving.wait_for("serving")
    yield serving
    serving.end()


def clients(url: str) -> aiohttp.ClientSession:
    """Any number of clients at once, each with a connection of its own."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(total=None))


async def ask(session: aiohttp.ClientSession, request: dict[str, Any]) -> tuple[str, int]:
    async with session.post("completions", json={"model": "smollm2", **request}) as response:
        answer = await response.json()
        assert response.status == 200, answer
        return answer["choices"][0]["text"], answer["usage"]["completion_tokens"]


async def ask_badly(session: aiohttp.ClientSession, request: dict[str, Any]) -> int:
    async with session.post("completions", json={"model": "smollm2", **request}) as response:
        assert (await response.json(content_type=None))["error"]["message"]
        return response.status


async def leave(session: aiohttp.ClientSession, pieces: int) -> None:
    """Ask for a long stream and close the connection after some pieces of it."""
    body = {"model": "smollm2", "prompt": "Count to a million: 1, 2,", "max_tokens": 900, "stream": True}
    async with session.post("completions", json=body) as response:
        for _ in range(pieces):
            assert await response.content.readany()
        response.close()


async def crowd(url: str) -> tuple[list[tuple[str, int]], list[int], list[tuple[str, int]]]:
    """All at once, in random order; then the seeded ones again, one by one."""
    async with clients(url) as session:
        good = [ask(session, request) for request in [*greedy_requests(), *seeded_requests()]]
        bad = [ask_badly(session, INVALID[number % len(INVALID)]) for number in range(BAD)]
        leaving = [leave(session, number % 4) for number in range(LEAVING)]
        order = list(range(len(good) + len(bad) + len(leaving)))
        random.Random(7).shuffle(order)
        work = [*good, *bad, *leaving]
        tasks = {index: asyncio.ensure_future(work[index]) for index in order}
        results: list[Any] = await asyncio.gather(*(tasks[index] for index in range(len(work))))
        alone = [await ask(session, request) for request in seeded_requests()]
    return results[: len(good)], results[len(good) : len(good) + len(bad)], alone


async def flood(url: str) -> Counter[tuple[int, str | None, bool]]:
    """Far more at once than run and wait; return how often which status, error and Retry-After came."""
    async with clients(url) as session:

        async def one(number: int) -> tuple[int, str | None, bool]:
            async with session.post("completions", json={"model": "smollm2", "prompt": f"{number}", "max_tokens": 4}) as response:
                error = (await response.json()).get("error") or {}
                return response.status, error.get("type"), "Retry-After" in response.headers

        return Counter(await asyncio.gather(*(one(number) for number in range(FLOOD))))


def base_url(serving: Serving) -> str:
    return serving.wait_for("base URL for OpenAI clients").split()[-1] + "/"


def test_each_of_a_crowd_gets_what_it_would_get_alone(crowded: Serving, expected: list[tuple[str, int]]) -> None:
    answers, refusals, alone = asyncio.run(crowd(base_url(crowded)))
    assert answers[: len(expected)] == expected
    assert answers[len(expected) :] == alone, "a seed's answer does not depend on its neighbours"
    assert len({text for text, _ in alone}) > SEEDED // 2
    assert set(refusals) == {400}


def test_all_that_may_wait_are_answered_and_the_others_told_when_to_come_again(crowded: Serving) -> None:
    """TorchServe refused by itself what came between two turns and did not fit its own queue, whoever could have run or waited."""
    counted = asyncio.run(flood(base_url(crowded)))
    answered, refused = (200, None, False), (429, "rate_limit_error", True)
    assert set(counted) == {answered, refused}
    assert counted[answered] >= CONCURRENCY + QUEUE
