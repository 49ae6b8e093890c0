"""What serving costs on one GPU, next to other ways to serve and to what its memory allows; needs no JVM.

A model of a real shape with random weights is served by the engine called directly; by the worker's process behind a stand-in for
TorchServe's frontend (`torchserve` below: no JVM and no HTTP); by `transformers serve --continuous-batching`; and by plain `generate`,
which answers as many at a time as there are streams and begins no other before all have ended. A stream is a client that sends its next
request when its last answer is whole. The bound is that of decoding alone: each step reads the weights once and the cache of every
stream, as fast as this device copies memory. Writes a table and `tests/bench/results/gpu.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import frontend_stand_in
import memory_bound
import random_models
import yaml
from client import ask
from worker_bench import (
    COLUMNS,
    CONTEXT_TOKENS,
    DOCUMENTS,
    NAME,
    REQUESTS,
    ROOT,
    Answer,
    Figures,
    call,
    cpu_cache,
    crowd,
    figures,
    generate_batch,
    overall,
    served,
    table,
    transformers_served,
    warm_up,
)

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.resources.desired import desired
from lmd_operator.settings import Settings as OperatorSettings

RESULTS = ROOT / "tests" / "bench" / "results" / "gpu.json"
ROUNDS = 2
"""Answers a client gives at least, so that not all of them begin or end together."""
OF_BOUND = "of_bound"
SAME = "same_as_engine"
"""The share of answers that are, word for word, those of the engine called directly."""

Rows = dict[int, Figures]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured. `model_directory` is TorchServe's, as the operator renders it; `weights` are the model's own files."""

    shape: str
    device: str
    weights: Path
    model_directory: Path
    streams: Sequence[int]
    answer_tokens: int

    @property
    def dtype(self) -> str:
        return str(random_models.SHAPES[self.shape]["dtype"])

    def prompts(self, streams: int) -> list[str]:
        """Return what is asked for this number of streams, the same of all ways, in whole rounds."""
        return DOCUMENTS.prompts(max(REQUESTS // streams, ROUNDS) * streams, streams)

    def tokens_before(self, streams: int) -> float:
        """Return how many tokens are before the one that is made, on average; a word is a token."""
        return statistics.mean(len(prompt.split()) for prompt in self.prompts(streams)) + self.answer_tokens / 2

    def config(self) -> dict[str, Any]:
        """Return the rendered model-config.yaml."""
        config: dict[str, Any] = yaml.safe_load((self.model_directory / "model-config.yaml").read_text())
        return config


def render(case: Case) -> None:
    """Write TorchServe's model directory as the operator would."""
    document = served(1, max(case.streams), CONTEXT_TOKENS)
    spec = document["spec"]
    spec["model"]["source"]["path"]["path"] = str(case.weights)
    spec["engine"]["dtype"] = case.dtype
    spec["accelerator"]["type"] = "CPU" if case.device == "cpu" else "Nvidia"
    files = desired(LargeModelDeployment.model_validate(document), OperatorSettings()).files
    for name, path in files.model_files.items():
        (case.model_directory / path).parent.mkdir(parents=True, exist_ok=True)
        (case.model_directory / path).write_text(files.texts[name])


def prepare(case: Case) -> dict[str, Any]:
    """Make the model and measure the device; return its name and what bounds a step."""
    import torch

    case.weights.parent.mkdir(parents=True, exist_ok=True)
    random_models.write(case.shape, case.weights, " ".join(DOCUMENTS.prompts(REQUESTS)).split(), case.device)
    weight_bytes, cache_bytes = random_models.bytes_a_step(case.shape)
    return {
        "device": torch.cuda.get_device_name(0) if case.device == "cuda" else "CPU",
        "bound": {
            "copy_bytes_per_second": memory_bound.copy_bytes_per_second(case.device),
            "weight_bytes": weight_bytes,
            "cache_bytes_per_token": cache_bytes,
        },
    }


def engine(case: Case) -> tuple[Rows, dict[int, dict[str, list[str]]]]:
    """Call the engine in this process, without frontend, routes or text; return the figures and the answers by streams and prompt."""
    from transformers import AutoTokenizer

    from lmd_worker import loading
    from lmd_worker.settings import Settings

    loaded = loading.load(Settings.from_model_config(NAME, case.model_directory, case.config()))
    tokenizer = AutoTokenizer.from_pretrained(case.weights)
    rows, answers = {}, {}
    for streams in case.streams:
        asked = case.prompts(streams)
        texts = [tokenizer(prompt)["input_ids"] for prompt in asked]
        call(loaded.engine, [tokenizer(text)["input_ids"] for text in warm_up(streams)], streams, [case.answer_tokens] * streams)
        rows[streams], tokens = call(loaded.engine, texts, streams, [case.answer_tokens] * len(texts))
        answers[streams] = {prompt: tokenizer.convert_ids_to_tokens(made) for prompt, made in zip(asked, tokens, strict=True)}
    loaded.engine.stop()  # type: ignore[attr-defined]  # every engine of the worker has it
    return rows, answers


def torchserve(case: Case, answers: Mapping[int, Mapping[str, Sequence[str]]]) -> Rows:
    """Ask the worker's process over its socket; `answers` are the engine's own, to compare."""
    gpu = 0 if case.device == "cuda" else None

    async def measure(sock: Path) -> Rows:
        async with frontend_stand_in.loaded(sock, case.model_directory, case.config()["batchSize"], gpu) as frontend:
            return {streams: await compared(frontend, streams) for streams in case.streams}

    async def compared(frontend: frontend_stand_in.FrontendStandIn, streams: int) -> Figures:
        said: dict[str, list[str]] = {}

        async def one(prompt: str) -> Answer:
            answer, said[prompt] = await complete(frontend, prompt, case.answer_tokens)
            return answer

        row = await crowd(one, case.prompts(streams), streams)
        for text in warm_up(streams):
            del said[text]
        return {**row, SAME: round(statistics.mean(said[prompt] == answers[streams][prompt] for prompt in said), 3)}

    with frontend_stand_in.worker({"PYTHONPATH": str(case.model_directory)}) as sock:
        return asyncio.run(measure(sock))


async def complete(frontend: frontend_stand_in.FrontendStandIn, prompt: str, answer_tokens: int) -> tuple[Answer, list[str]]:
    """Stream one greedy completion; return when its pieces came, and its words."""
    body = {"model": NAME, "prompt": prompt, "max_tokens": answer_tokens, "temperature": 0, "stream": True}
    asked, came, words = time.monotonic(), [], []
    async for piece in frontend.predict("v1/completions", json.dumps(body).encode()):
        if piece.status != frontend_stand_in.OK:
            raise RuntimeError(f"the worker answered {piece.status}: {piece.body.decode()}")
        new = [word for event in events(piece.body) for choice in event.get("choices", ()) for word in choice["text"].split()]
        if new:
            came.append(time.monotonic())
            words += new
    return Answer(asked, came, len(words)), words


def events(body: bytes) -> list[dict[str, Any]]:
    """Return the documents of server-sent events. Raises `RuntimeError` for one that tells of an error."""
    lines = [line.removeprefix("data: ") for line in body.decode().splitlines() if line]
    documents = [json.loads(line) for line in lines if line != "[DONE]"]
    if failed := next((document for document in documents if "error" in document), None):
        raise RuntimeError(f"the worker answered {failed['error']}")
    return documents


def transformers_serve(case: Case) -> Rows:
    """Ask `transformers serve`; on a GPU it chooses the size of its cache itself."""
    extra = {"model": str(case.weights), "max_tokens": case.answer_tokens}
    cache = cpu_cache(max(case.streams)) if case.device == "cpu" else []

    async def measure(url: str, streams: int) -> Figures:
        return await crowd(lambda prompt: ask(url, prompt, extra), case.prompts(streams), streams)

    with transformers_served(case.weights, *cache, "--device", case.device, "--dtype", case.dtype) as url:
        return {streams: asyncio.run(measure(url, streams)) for streams in case.streams}


def generate(case: Case) -> Rows:
    """Answer static batches with plain `generate`; all of a batch are asked when it begins."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(case.weights, padding_side="left")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    model = AutoModelForCausalLM.from_pretrained(case.weights, dtype=getattr(torch, case.dtype)).to(case.device)

    def answer(batch: Sequence[str]) -> list[Answer]:
        asked = time.monotonic()
        inputs = tokenizer(list(batch), padding=True, return_tensors="pt").to(case.device)
        came = generate_batch(model, inputs, case.answer_tokens)
        return [Answer(asked, came, len(came)) for _ in batch]

    rows = {}
    for streams in case.streams:
        asked = case.prompts(streams)
        answer(asked[:1])
        began = time.monotonic()
        answers = [each for first in range(0, len(asked), streams) for each in answer(asked[first : first + streams])]
        rows[streams] = figures(answers, overall(answers, began))
    return rows


def apart(function: Callable[[Case], Result], case: Case) -> Result:
    """Run a function in a process of its own, which takes with it what it had of the device."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, case).result()


def measure(case: Case) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Run all ways, one after the other; return what the device is, and the figures by way and streams."""
    render(case)
    told = apart(prepare, case)
    direct, answers = apart(engine, case)
    ways = {
        "engine": direct,
        "torchserve": torchserve(case, answers),
        "transformers_serve": transformers_serve(case),
        "generate": apart(generate, case),
    }
    limit = {streams: memory_bound.bound(told["bound"], streams, case.tokens_before(streams)) for streams in case.streams}
    for rows in ways.values():
        for streams, row in rows.items():
            row[OF_BOUND] = round(row["tokens_per_second"] / limit[streams]["tokens_per_second"], 3)
    return told, {**ways, "bound": limit}


def document(case: Case, told: Mapping[str, Any], results: Mapping[str, Rows]) -> dict[str, Any]:
    """Return what is written: the device and its bound, then the figures by streams and way."""
    made = {
        "shape": case.shape,
        "dtype": case.dtype,
        "answer_tokens": case.answer_tokens,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
    }
    by_count = {str(streams): {way: rows[streams] for way, rows in results.items()} for streams in case.streams}
    return {**told, **made, **by_count}


def main() -> int:
    cache = Path(os.environ.get("LMD_CACHE_DIR", "~/.cache/lmd")).expanduser() / "models"
    parser = argparse.ArgumentParser(description="Measure what serving costs on one GPU.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try this program in small")
    parser.add_argument("--shape", choices=random_models.SHAPES, default="llama-3.1-8b")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32, 128], metavar="N")
    parser.add_argument("--answer-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--models", type=Path, default=cache, help="where the random model is kept (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="where figures go (default: on cuda tests/bench/results/gpu.json, on cpu nowhere)")
    options = parser.parse_args()
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print("PyTorch finds no CUDA device here; run this where one is, or in small: --device cpu --shape tiny.", file=sys.stderr)
            return 1
    output = options.output or (RESULTS if options.device == "cuda" else None)
    with tempfile.TemporaryDirectory() as folder:
        weights = (options.models / f"random-{options.shape}").resolve()
        case = Case(options.shape, options.device, weights, Path(folder), options.streams, options.answer_tokens)
        told, results = measure(case)
    print(f"{told['device']}, {case.shape} with random weights, {case.dtype}; answers of {case.answer_tokens} tokens\n")
    print(table(results, (*COLUMNS, OF_BOUND, SAME)))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(document(case, told, results), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
