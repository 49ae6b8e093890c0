"""One rank of the matrix: loads one tiny family after the other under a strategy, as the worker does, and compares its tokens.

matrix_ranks.py CASES.json OUT.json, started by torchrun; a case is a family and a strategy. Rank 0 writes,
for every case, the sentence of its refusal or what the engine made of it and what plain `generate` makes of each prompt alone.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import tiny_families
import torch
import transformers

from lmd_worker import ranks
from lmd_worker.engine.protocol import Engine, Sampling
from lmd_worker.errors import WorkerError
from lmd_worker.loading import load
from lmd_worker.settings import Settings
from lmd_worker.shape import ModelShape
from lmd_worker.watch import end_process

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [40, 41, 42], [100]]
STEPS = 8
CONTEXT_TOKENS = 32
PATIENCE_SECONDS = 60
SIZE = int(os.environ["WORLD_SIZE"])
OF_ONE_PROCESS = ("Accelerate",)
STAGES = 2
IN_STAGES = ("Pipeline", "PipelineTensor")
PART_IN_MEMORY = 0.6


def main() -> None:
    cases, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    folder = Path(os.environ["LMD_MATRIX_MODELS"])
    group: ranks.Group | None = None
    results = []
    for case in cases:
        directory = folder / case["family"].replace(", ", "-").replace(" ", "-")
        with tempfile.TemporaryDirectory() as scratch:
            group = group or ranks.join(_settings(directory, {"strategy": "Tensor"}, Path(scratch), SIZE))
            if group.rank == 0 and not directory.exists():
                tiny_families.save(case["family"], directory)
            group.barrier()
            if case["strategy"] in OF_ONE_PROCESS:
                alone = ranks.Group(rank=0, size=1, device=group.device)
                found = _run(_settings(directory, case, Path(scratch), 1), alone) if group.rank == 0 else {}
            else:
                found = _run(_settings(directory, case, Path(scratch), SIZE), group)
            results.append({**case, **found})
    if group is not None and group.rank == 0:
        out.write_text(json.dumps(results))
    end_process(0)  # as a worker's rank: a thread of gloo that frees a Python tensor while the interpreter ends aborts the process


def _settings(directory: Path, case: dict[str, Any], scratch: Path, size: int) -> Settings:
    document = {"dtype": "float32", "tensor_parallel": {"tp_size": size, "tp_grain_size": 64}, "replace_with_kernel_inject": False}
    text = Path(os.environ["LMD_MATRIX_MODELS"], "zero.json").read_text() if case["strategy"] == "ZeroInference" else json.dumps(document)
    (scratch / "ds-config.json").write_text(text)
    handler = {"dtype": "float32", "concurrency": 4, "context_tokens": CONTEXT_TOKENS, "collective_timeout_seconds": PATIENCE_SECONDS}
    section = {**handler, "model_path": str(directory), "strategy": case["strategy"]}
    if case["strategy"] == "Accelerate":  # a part in memory, the rest on disk
        section["host_memory_bytes"] = int(ModelShape.read(directory).weight_bytes * PART_IN_MEMORY)
    if case["strategy"] in IN_STAGES:
        section["pipeline"] = STAGES
    config = {"torchrun": {"nproc-per-node": size}, "deepspeed": {"config": "ds-config.json"}, "handler": section}
    return Settings.from_model_config("model", scratch, config)


def _run(settings: Settings, group: ranks.Group) -> dict[str, Any]:
    try:
        loaded = load(settings, group)
    except WorkerError as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    if group.rank != 0:
        loaded.engine.stop(PATIENCE_SECONDS)
        return {}
    try:
        made = _answers(loaded.engine)
    finally:
        loaded.engine.stop(PATIENCE_SECONDS)
    first = loaded.reports[0]
    held = [report.parameter_bytes / report.model_bytes for report in loaded.reports]
    config = json.loads((settings.model_path / "config.json").read_text())
    heads = [[report.heads, report.key_value_heads] for report in loaded.reports]
    told = {"scheduler": first.scheduler, "reason": first.scheduler_reason, "held": held, "heads": heads}
    counted = {"config": config, "bytes": [report.parameter_bytes for report in loaded.reports]}
    return {"made": made, "expected": _expected(settings.model_path), **told, **counted}


Answer = dict[str, list[Any]]


def _answers(engine: Engine) -> list[Answer]:
    """Submit every prompt at once and collect the tokens of all answers and their log-probabilities."""
    answers: dict[str, Answer] = {str(number): {"tokens": [], "scores": []} for number in range(len(PROMPTS))}
    for number, prompt in enumerate(PROMPTS):
        engine.submit(str(number), prompt, Sampling(max_tokens=STEPS, logprobs=0))
    running = set(answers)
    while running:
        engine.wait(running, 1)
        for name in list(running):
            news = engine.progress(name)
            answers[name]["tokens"] += news.tokens
            answers[name]["scores"] += [step.logprob for step in news.logprobs]
            if news.finish_reason is not None:
                running.discard(name)
    return list(answers.values())


def _expected(directory: Path) -> list[Answer]:
    """Return what plain transformers makes of each prompt alone, in this process."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    plain = {"do_sample": False, "max_new_tokens": STEPS, "min_new_tokens": STEPS, "pad_token_id": 0}
    answers = []
    for prompt in PROMPTS:
        with torch.inference_mode():
            made = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                output_logits=True,
                return_dict_in_generate=True,
                **plain,
            )
        tokens = made.sequences[0, len(prompt) :]
        scores = torch.cat(made.logits).log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
        answers.append({"tokens": tokens.tolist(), "scores": scores.tolist()})
    return answers


if __name__ == "__main__":
    main()
