"""One rank of a test: load as the worker does, then run what a scenario file asks. Started by torchrun or by `ranks.start`.

driver.py answers SCENARIO.json OUT.json      waves of requests; rank 0 writes every request's tokens and end
driver.py watch SCENARIO.json OUT_DIRECTORY   run until the engine fails; each rank writes its sentence
driver.py load SCENARIO.json OUT_DIRECTORY    load only; each rank writes its refusal
driver.py handler SCENARIO.json OUT_DIRECTORY initialize the handler as TorchServe does, with a fault if the scenario names one
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lmd_worker import ranks, selftest
from lmd_worker.engine.protocol import Engine, Sampling
from lmd_worker.errors import WorkerError
from lmd_worker.handler import TextGeneration
from lmd_worker.loading import load
from lmd_worker.settings import Settings
from lmd_worker.strategies import autotp
from lmd_worker.watch import end_process

DEADLINE_SECONDS = 300


def main() -> None:
    task, scenario, out = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
    if task == "handler":
        handler(scenario, out)
        return
    settings = Settings.from_model_config("model", Path(scenario["directory"]), scenario["config"])
    {"answers": answers, "watch": watch, "load": load_only}[task](settings, scenario, out)


def answers(settings: Settings, scenario: dict[str, Any], out: Path) -> None:
    started = time.monotonic()
    loaded = load(settings)
    ready = time.monotonic()
    if loaded.rank == 0:
        results = {}
        for wave in scenario["waves"]:
            results.update(run_wave(loaded.engine, wave))
        tokens = sum(len(result["tokens"]) for result in results.values())
        figures = {"load_seconds": ready - started, "tokens": tokens, "run_seconds": time.monotonic() - ready}
        deadline = time.monotonic() + DEADLINE_SECONDS
        while loaded.engine.stats().cache_blocks_used and time.monotonic() < deadline:
            time.sleep(0.01)  # the pages of the last request are freed by the next turn
        stats = asdict(loaded.engine.stats())
        out.write_text(json.dumps({"results": results, "figures": figures, "failure": loaded.engine.failure(), "stats": stats}))
    loaded.engine.stop(DEADLINE_SECONDS)
    end_process(0)  # as a worker's rank: a thread of gloo that frees a Python tensor while the interpreter ends aborts the process


def run_wave(engine: Engine, wave: list[dict[str, Any]]) -> dict[str, Any]:
    """Submit all, cancel those that say `cancel_after` so many tokens, and collect until all have ended."""
    results = {request["id"]: {"tokens": [], "logprobs": [], "end": None} for request in wave}
    for request in wave:
        stop = frozenset(request["sampling"].pop("stop_token_ids", ()))
        engine.submit(request["id"], request["prompt"], Sampling(**request["sampling"], stop_token_ids=stop))
    limits = {request["id"]: request["cancel_after"] for request in wave if "cancel_after" in request}
    deadline = time.monotonic() + DEADLINE_SECONDS
    while open_ids := [name for name, result in results.items() if result["end"] is None]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{open_ids} have not ended; failure: {engine.failure()}")
        engine.wait(open_ids, 1)
        for name in open_ids:
            news = engine.progress(name)
            results[name]["tokens"] += news.tokens
            results[name]["logprobs"] += [asdict(step) for step in news.logprobs]
            results[name]["end"] = news.finish_reason
            if name in limits and len(results[name]["tokens"]) >= limits[name]:
                engine.cancel(name)
    return results


def watch(settings: Settings, scenario: dict[str, Any], out: Path) -> None:
    loaded = load(settings)
    if loaded.rank == 0:
        request = scenario["waves"][0][0]
        loaded.engine.submit(request["id"], request["prompt"], Sampling(**request["sampling"]))
        while not loaded.engine.progress(request["id"]).tokens:
            loaded.engine.wait([request["id"]], 1)
    write(out / f"running-{loaded.rank}", str(os.getpid()))
    if scenario.get("stops_before_handing_over") == loaded.rank:
        from lmd_worker.strategies import stages

        stages._send = lambda *_, **__: os.kill(os.getpid(), signal.SIGSTOP)
    while (failure := loaded.engine.failure()) is None:
        time.sleep(0.05)
    write(out / f"failed-{loaded.rank}", failure)
    os._exit(0)


def load_only(settings: Settings, scenario: dict[str, Any], out: Path) -> None:
    rank = os.environ["RANK"]
    if scenario.get("break_rank") == int(rank):
        selftest._weights_complaint = lambda *_: f"Rank {rank}: broken on purpose."
    try:
        load(settings)
        words = "loaded"
    except WorkerError as error:
        words = f"{type(error).__name__}: {error}"
    write(out / f"loaded-{rank}", words)
    os._exit(0)


def handler(scenario: dict[str, Any], out: Path) -> None:
    rank = os.environ["RANK"]
    FAULTS[scenario["fault"]](rank)
    context = SimpleNamespace(
        model_name="model", system_properties={"model_dir": scenario["directory"]}, model_yaml_config=scenario["config"]
    )
    TextGeneration().initialize(context)
    write(out / f"ready-{rank}", "ready")
    if rank != "0":
        signal.pause()  # rank 0's end is its end
    os._exit(0)


def one_device(_: str) -> None:
    ranks.device_id = lambda device: "GPU-0"


def not_cut(_: str) -> None:
    autotp._cut = lambda model, document, group: model


def never_comes(rank: str) -> None:
    ranks.JOIN_TIMEOUT_SECONDS = 2
    if rank == "1":
        signal.pause()


FAULTS: dict[str, Callable[[str], None]] = {
    "none": lambda _: None,
    "two ranks on one device": one_device,
    "a model that is not cut": not_cut,
    "a rank that never comes": never_comes,
}


def write(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


if __name__ == "__main__":
    main()
