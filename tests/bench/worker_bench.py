"""What serving costs: tokens a second and the time to each, through TorchServe, next to the same engine called directly,
to `transformers serve --continuous-batching`, and to plain `generate` one request after the other.

Every way serves the same model to the same prompts on the same cores, warm: a crowd of the largest size goes before all, as the frontend's
JVM is slow at first, and an answer to each client before each measurement. All wait side by side while one is measured, and each is
measured twice, there and back (1 2 3 3 2 1), as the speed of shared machines drifts by more than what is to be told apart. A stream is a
client that sends its next request when its last answer is whole. Writes a table and `tests/bench/results/worker.json`.

Where a model computes on all cores, whatever the frontend and the clients of this benchmark do is taken from it, twice, as its threads
wait for each other. With `--spare-core` it computes on one fewer, called directly as well: what is lost then is TorchServe's own doing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
import yaml
from client import Streamed, ask

from lmd_operator.local.ports import free_ports
from lmd_worker.engine.protocol import Sampling

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "bench" / "results" / "worker.json"
SPARE_CORE_RESULTS = RESULTS.with_name("worker_spare_core.json")
BIN = Path(sys.executable).parent
MODEL = "smollm2-135m-instruct"
NAME = "bench"
CONTEXT_TOKENS = 512
REQUESTS = 16
"""At least this many a measurement, so that few streams are measured over several answers."""
ROUNDS = 3
"""At least this many answers a stream: with one, all prompts would be read at once, and nobody would come while others are answered."""
START_SECONDS = 600
WORDS = ("the sea was calm and the old captain told his crew about a city of glass far beyond the northern mountains " * 12).split()
WARM_UP = "warm up"
WARMING_MIX, WARMING_TURN = "documents", -1
LOADED = "loaded\n"
"""What a process that calls a model itself says once it can."""
COLUMNS = ("tokens_per_second", "ttft_p50_ms", "ttft_p95_ms", "itl_p50_ms", "itl_p99_ms")

Figures = dict[str, float]
Counted = dict[int, Figures]
"""By the number of streams."""
Way = Callable[[str, int, int], Figures]
"""Measures: the name of a mix, the number of streams, the number of the turn."""


@dataclass(frozen=True, slots=True)
class Mix:
    """What clients ask for: prompts of so many words, and answers of so many tokens on average."""

    least_words: int
    most_words: int
    answer_tokens: int

    def __str__(self) -> str:
        return f"prompts of {self.least_words} to {self.most_words} words, answers of about {self.answer_tokens} tokens"

    def prompts(self, count: int, streams: int = 1, turn: int = 0) -> list[str]:
        """Return prompts, the same every time.

        All begin differently, also those for other numbers of streams and other turns, so that no cache of beginnings has a part in it.
        """
        spread = self.most_words - self.least_words + 1
        turned = (WORDS[index * 7 % len(WORDS) :] + WORDS for index in range(count))
        cut = (words[: self.least_words + index * 53 % spread] for index, words in enumerate(turned))
        return [f"Story {streams}.{turn}.{index}: {' '.join(words)}" for index, words in enumerate(cut)]

    def length(self, prompt: str) -> int:
        """Return how many tokens to answer a prompt with, up to a quarter more or fewer than on average.

        With equal lengths, clients who call the engine in its own process would end and begin together for ever, and so have all their
        prompts read in one turn; over a network nobody does.
        """
        return self.answer_tokens * 3 // 4 + len(prompt) * 7 % (self.answer_tokens // 2 + 1)


DOCUMENTS = Mix(8, 200, 48)
"""Mostly reading: a prompt has three times the tokens of its answer on average."""
MIXES = {"documents": DOCUMENTS, "questions": Mix(4, 24, 64)}


@dataclass(frozen=True, slots=True)
class Answer:
    """When an answer was asked for and when pieces of it came, in seconds, and how many tokens it had."""

    asked: float
    came: Sequence[float]
    tokens: int


def requests(streams: int) -> int:
    return max(REQUESTS // streams, ROUNDS) * streams


def figures(answers: Sequence[Answer | Streamed], tokens_per_second: float) -> Figures:
    """Return the columns; times between tokens are those between pieces that a client sees."""
    first = [answer.came[0] - answer.asked for answer in answers]
    between = [after - before for answer in answers for before, after in zip(answer.came, answer.came[1:], strict=False)]
    return {
        "tokens_per_second": round(tokens_per_second, 2),
        "ttft_p50_ms": round(1000 * statistics.median(first), 1),
        "ttft_p95_ms": round(1000 * percentile(first, 0.95), 1),
        "itl_p50_ms": round(1000 * statistics.median(between), 1),
        "itl_p99_ms": round(1000 * percentile(between, 0.99), 1),
    }


def overall(answers: Sequence[Answer | Streamed], began: float) -> float:
    """Return the tokens a second of all answers, until now."""
    return sum(answer.tokens for answer in answers) / (time.monotonic() - began)


def steady(answers: Sequence[Answer | Streamed], began: float) -> float:
    """Return the tokens a second for as long as all clients were being answered: until the first of them had nothing more to ask.

    How long the others go on after that is chance: whose answers are the long ones.
    """
    last_asked = max(answer.asked for answer in answers)
    end = min(answer.came[-1] for answer in answers if answer.came[-1] > last_asked)
    parts = (answer.tokens * sum(at <= end for at in answer.came) / len(answer.came) for answer in answers)
    return sum(parts) / (end - began)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def driven(url: str, most_streams: int, extra: dict[str, Any]) -> Way:
    """Return how to measure an OpenAI server, warm: streamed completions for so many clients at once."""

    def drive(mix: str, streams: int, turn: int) -> Figures:
        prompts = MIXES[mix].prompts(requests(streams), streams, turn)
        return uvloop.run(crowd(lambda text: ask(url, text, {"max_tokens": MIXES[mix].length(text), **extra}), prompts, streams))

    drive(WARMING_MIX, most_streams, WARMING_TURN)
    return drive


async def crowd(one: Callable[[str], Awaitable[Answer | Streamed]], texts: Sequence[str], streams: int) -> Figures:
    """Let so many clients ask for these texts, each for its next when its last answer is whole, after one answer each to warm up."""
    waiting = iter(texts)
    answers: list[Answer | Streamed] = []

    async def client() -> None:
        for text in waiting:
            answers.append(await one(text))

    warm = await asyncio.gather(*map(one, warm_up(streams)))
    if not all(answer.tokens for answer in warm):
        raise RuntimeError("An answer without a token came while the server was warmed up.")
    began = time.monotonic()
    await asyncio.gather(*(client() for _ in range(streams)))
    return figures(answers, steady(answers, began))


def warm_up(streams: int) -> list[str]:
    return [f"{WARM_UP} {streams}.{index}" for index in range(streams)]


@contextmanager
def torchserve(models: Path, ranks: int, most_streams: int, threads: int | None = None) -> Iterator[Way]:
    document = served(ranks, most_streams, CONTEXT_TOKENS)
    if threads is not None:
        document["spec"]["template"] = {"resources": {"limits": {"cpu": str(threads * ranks)}}}
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "bench.yaml"
        manifest.write_text(yaml.safe_dump(document))
        with started([str(BIN / "lmd"), "serve", str(manifest), "--port", "0", "--models", str(models)], r"base URL (\S+?),") as address:
            base = f"{address}/predictions/{NAME}/1.0/v1/completions"
            yield driven(base, most_streams, {"model": NAME, "stream_options": {"include_usage": True}})


@contextmanager
def transformers_serve(models: Path, most_streams: int) -> Iterator[Way]:
    path = models / MODEL
    with transformers_served(path, *cpu_cache(most_streams), "--device", "cpu", "--dtype", "float32") as url:
        yield driven(url, most_streams, {"model": str(path)})


def cpu_cache(streams: int) -> list[str]:
    """Return the options of a cache as large as ours; its own choice is a share of the host's memory."""
    return ["--cb-block-size", "16", "--cb-num-blocks", str(streams * CONTEXT_TOKENS // 16)]


@contextmanager
def transformers_served(path: Path, *options: str) -> Iterator[str]:
    """Serve a model with `transformers serve`; yield where it completes texts.

    It is killed, as the thread of its engine would keep it after any other signal (transformers 5.23).
    """
    port = free_ports(1)[0]
    command = [str(BIN / "transformers"), "serve", str(path), "--continuous-batching", *options]
    with started([*command, "--host", "127.0.0.1", "--port", str(port)], r"Uvicorn running on (\S+)", ending=signal.SIGKILL):
        yield f"http://127.0.0.1:{port}/v1/completions"


def engine(models: Path, most_streams: int) -> Way:
    """Load the engine in this process, to be called without frontend, routes or text; answers end where a client's would."""
    from transformers import AutoTokenizer

    from lmd_worker import loading
    from lmd_worker.settings import Settings

    handler = {
        "model_path": str(models / MODEL),
        "strategy": "None",
        "dtype": "float32",
        "concurrency": most_streams,
        "context_tokens": CONTEXT_TOKENS,
    }
    loaded = loading.load(Settings.from_model_config(NAME, models, {"handler": handler}))
    tokenizer = AutoTokenizer.from_pretrained(models / MODEL)

    def asked(texts: Sequence[str], mix: Mix, streams: int) -> Figures:
        prompts, lengths = [tokenizer(text)["input_ids"] for text in texts], [mix.length(text) for text in texts]
        return call(loaded.engine, prompts, streams, lengths, loaded.text.stop_token_ids)[0]

    def called(mix: str, streams: int, turn: int) -> Figures:
        asked(warm_up(streams), MIXES[mix], streams)
        return asked(MIXES[mix].prompts(requests(streams), streams, turn), MIXES[mix], streams)

    called(WARMING_MIX, most_streams, WARMING_TURN)
    return called


def call(
    engine: Any,
    texts: Sequence[Sequence[int]],
    streams: int,
    answer_tokens: Sequence[int],
    stop_token_ids: frozenset[int] = frozenset(),
) -> tuple[Figures, list[list[int]]]:
    """Call an engine in this process as so many clients would; return the figures and the tokens that answer each text."""
    calls = _Calls(engine, texts, [Sampling(most, stop_token_ids=stop_token_ids) for most in answer_tokens])
    began = time.monotonic()
    running = {calls.begin() for _ in range(min(streams, len(texts)))}
    while running:
        engine.wait(running, 1.0)
        ended = {name for name in running if calls.take(name)}
        running = running - ended | {calls.begin() for _ in ended if calls.waiting}
    answers = calls.answers()
    return figures(answers, steady(answers, began)), calls.tokens()


class _Calls:
    """Requests to an engine in this process, and when their tokens came."""

    def __init__(self, engine: Any, texts: Sequence[Sequence[int]], wanted: Sequence[Sampling]) -> None:
        self._engine = engine
        self._wanted = wanted
        self.waiting = list(texts)
        self._asked: dict[str, float] = {}
        self._came: dict[str, list[float]] = {}
        self._tokens: dict[str, list[int]] = {}

    def begin(self) -> str:
        """Submit the next request and return its name."""
        number = len(self._asked)
        name = str(number)
        self._asked[name], self._came[name], self._tokens[name] = time.monotonic(), [], []
        self._engine.submit(name, self.waiting.pop(0), self._wanted[number])
        return name

    def take(self, name: str) -> bool:
        """Note what has come for one request; return whether it has ended."""
        progress = self._engine.progress(name)
        if progress.error is not None:
            raise RuntimeError(progress.error)
        self._tokens[name] += progress.tokens
        self._came[name] += [time.monotonic()] * len(progress.tokens)
        return progress.finish_reason is not None

    def answers(self) -> list[Answer]:
        return [Answer(asked, self._came[name], len(self._came[name])) for name, asked in self._asked.items()]

    def tokens(self) -> list[list[int]]:
        return list(self._tokens.values())


def generate(models: Path, most_streams: int) -> Way:
    """Answer one request after the other with plain `generate`: what a handler without an engine does, however many clients wait."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models / MODEL)
    model = AutoModelForCausalLM.from_pretrained(models / MODEL, dtype=torch.float32)

    def answer(text: str, tokens: int) -> list[float]:
        return generate_batch(model, tokenizer(text, return_tensors="pt"), tokens, least_tokens=1)

    def one_by_one(mix: str, streams: int, turn: int) -> Figures:
        answer(WARM_UP, MIXES[mix].answer_tokens)
        began = time.monotonic()
        came = [answer(text, MIXES[mix].length(text)) for text in MIXES[mix].prompts(REQUESTS, streams, turn)]
        answers = [Answer(began, times, len(times)) for times in came]
        return figures(answers, overall(answers, began))  # all asked at the start

    return one_by_one


def generate_batch(model: Any, inputs: Mapping[str, Any], answer_tokens: int, least_tokens: int | None = None) -> list[float]:
    """Answer a batch of prompts with plain `generate`, to the last token unless fewer are enough; return when its tokens came."""
    import torch
    from transformers.generation.streamers import BaseStreamer

    class Times(BaseStreamer):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            self.came: list[float] = []

        def put(self, value: torch.Tensor) -> None:
            self.came.append(time.monotonic())

        def end(self) -> None: ...

    times = Times()
    with torch.inference_mode():
        model.generate(
            **inputs, max_new_tokens=answer_tokens, min_new_tokens=least_tokens or answer_tokens, do_sample=False, streamer=times
        )
    return times.came[1:]  # the first piece is the prompt


IN_PROCESS: dict[str, Callable[[Path, int], Way]] = {"engine": engine, "generate": generate}


@contextmanager
def apart(name: str, models: Path, most_streams: int, threads: int | None = None) -> Iterator[Way]:
    """Load one of `IN_PROCESS` in a process of its own, which is told on a line what to measure and tells its figures on another."""
    environment = {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}
    command = [sys.executable, __file__, "--only", name, "--models", str(models), "--streams", str(most_streams)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        told, said = process.stdin, process.stdout
        assert told is not None
        assert said is not None

        def measure(mix: str, streams: int, turn: int) -> Figures:
            print(json.dumps([mix, streams, turn]), file=told, flush=True)
            line = said.readline()
            if not line:
                raise RuntimeError(f"The process of {name} has ended; what it said is above.")
            found: Figures = json.loads(line)
            return found

        if said.readline() != LOADED:
            raise RuntimeError(f"The process of {name} has not loaded the model; what it said is above.")
        yield measure


def answer_for(way: Callable[[Path, int], Way], models: Path, most_streams: int) -> None:
    """Be the process of `apart` until its standard input ends."""
    said = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints
    measure = way(models, most_streams)
    print(LOADED, end="", file=said, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(*json.loads(line))), file=said, flush=True)
    said.close()
    os._exit(0)  # an engine's thread would keep the interpreter


def by_turns(ways: Mapping[str, Way], streams: Sequence[int]) -> dict[str, dict[str, Counted]]:
    """Measure every way there and back, for each mix and number of streams; return the means by way and mix."""
    there = [(name, 0) for name in ways]
    results: dict[str, dict[str, Counted]] = {name: {mix: {} for mix in MIXES} for name in ways}
    for mix in MIXES:
        for count in streams:
            found: dict[str, list[Figures]] = {name: [] for name in ways}
            for name, turn in [*there, *((name, 1) for name, _ in reversed(there))]:
                found[name].append(ways[name](mix, count, turn))
                print(f"{mix}, {count} streams, {name}: {found[name][-1]['tokens_per_second']:g} tokens a second", file=sys.stderr)
            for name, (first, second) in found.items():
                results[name][mix][count] = {column: round((first[column] + second[column]) / 2, 2) for column in COLUMNS}
    return results


@contextmanager
def started(
    command: list[str], ready: str, variables: Mapping[str, str] | None = None, ending: signal.Signals = signal.SIGINT
) -> Iterator[str]:
    """Run a server until it has said `ready`; yield what its group matched, and end the server and all it started."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **(variables or {})}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=environment
    )
    lines: list[str] = []
    said = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if re.search(ready, line):
                said.set()
        said.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        said.wait(START_SECONDS)
        match = next((found for line in lines if (found := re.search(ready, line))), None)
        if match is None:
            raise RuntimeError("\n".join([f"{command[0]} did not start:", *lines]))
        yield match[1]
    finally:
        os.killpg(process.pid, ending)
        process.wait(60)
        reader.join()


def served(ranks: int, concurrency: int, context_tokens: int) -> dict[str, Any]:
    """Return the object that serves the model on so many CPU ranks."""
    return {
        "apiVersion": "largemodel.dev/v1alpha1",
        "kind": "LargeModelDeployment",
        "metadata": {"name": NAME},
        "spec": {
            "model": {"source": {"path": {"path": f"/models/{MODEL}"}}},
            "parallelism": {"strategy": "DeepSpeed" if ranks > 1 else "None", "tensor": ranks},
            "engine": {"dtype": "float32", "contextTokens": context_tokens, "concurrency": concurrency},
            "accelerator": {"type": "CPU"},
        },
    }


def table(results: Mapping[str, Mapping[int, Figures]], columns: Sequence[str] = COLUMNS) -> str:
    """Return a row for each number of streams and each way; a figure that a way does not have is left empty."""
    lines = [f"| streams | way | {' | '.join(columns)} |", f"| ---: | --- |{' ---: |' * len(columns)}"]
    for count in next(iter(results.values())):
        for way, rows in results.items():
            cells = (f"{rows[count][column]:g}" if column in rows[count] else "" for column in columns)
            lines.append(f"| {count} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what serving costs.")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16, 32, 128], metavar="N")
    parser.add_argument("--ranks", type=int, default=1, help="ranks behind TorchServe (default: 1, as the others have)")
    spare = "leave a core to the frontend and the clients; only the engine and TorchServe before it are measured"
    parser.add_argument("--spare-core", action="store_true", help=spare)
    parser.add_argument("--models", type=Path, default=Path("~/.cache/lmd/models").expanduser())
    parser.add_argument(
        "--output", type=Path, help=f"default: {RESULTS.name} or {SPARE_CORE_RESULTS.name} in {RESULTS.parent.relative_to(ROOT)}"
    )
    parser.add_argument("--only", choices=IN_PROCESS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    most = max(options.streams)
    output = options.output or (SPARE_CORE_RESULTS if options.spare_core else RESULTS)
    threads = max(((os.cpu_count() or 1) - 1) // options.ranks, 1) if options.spare_core else None
    if options.only:
        answer_for(IN_PROCESS[options.only], options.models, most)
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        ways = {
            "engine": stack.enter_context(apart("engine", options.models, most, threads)),
            "torchserve": stack.enter_context(torchserve(options.models, options.ranks, most, threads)),
        }
        if not options.spare_core:
            ways["transformers_serve"] = stack.enter_context(transformers_serve(options.models, most))
        results = by_turns(ways, options.streams)
    if not options.spare_core:
        with apart("generate", options.models, most) as way:
            one_by_one = by_turns({"generate": way}, [1])["generate"]
        results["generate"] = {mix: dict.fromkeys(options.streams, rows[1]) for mix, rows in one_by_one.items()}
    by_count = {mix: {str(count): {way: rows[mix][count] for way, rows in results.items()} for count in options.streams} for mix in MIXES}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(by_count, indent=2) + "\n")
    computing = f"{os.cpu_count()} cores" + (f" of which the model computes on {threads * options.ranks}" if threads else "")
    print(f"{MODEL}, float32, {computing}, load average before: {load:.1f}")
    for name, mix in MIXES.items():
        print(f"\n{name}: {mix}\n")
        print(table({way: rows[name] for way, rows in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
