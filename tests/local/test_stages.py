"""A pipeline under `lmd serve`: the real frontend, one rank a stage or several, and tokens as of one process."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import yaml

pytestmark = pytest.mark.model

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [40, 41, 42], [100], list(range(200, 230))]
STEPS = 10


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write the manifest of a tiny model on CPUs."""

    def write(family: str, parallelism: dict[str, Any]) -> Path:
        tiny_families.save(family, tmp_path / "model")
        spec = {
            "model": {"source": {"path": {"path": str(tmp_path / "model")}}},
            "parallelism": parallelism,
            "engine": {"dtype": "float32", "contextTokens": 64, "torchServe": {"startupTimeoutSeconds": 200}},
            "accelerator": {"type": "CPU"},
        }
        document = {"apiVersion": "largemodel.dev/v1alpha1", "kind": "LargeModelDeployment", "metadata": {"name": "stages"}, "spec": spec}
        file = tmp_path / "stages.yaml"
        file.write_text(yaml.safe_dump(document))
        return file

    return write


def expected(directory: Path) -> list[str]:
    """Return what one process makes of each prompt alone."""
    import torch
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    answers = []
    for prompt in PROMPTS:
        with torch.inference_mode():
            made = model.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=STEPS, do_sample=False, pad_token_id=0
            )
        answers.append(tokenizer.decode(made[0, len(prompt) :]))
    return answers


def request(port: int, path: str, body: object = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        method, data = ("GET", None) if body is None else ("POST", json.dumps(body))
        connection.request(method, f"/predictions/stages/1.0/{path}", data, {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("family", "parallelism", "ranks", "scheduler"),
    [
        pytest.param("gpt_oss, short window", {"strategy": "Pipeline", "pipeline": 2}, 2, "Static", id="two stages"),
        pytest.param("llama", {"strategy": "PipelineTensor", "tensor": 2, "pipeline": 2}, 4, "Continuous", id="two cut stages"),
    ],
)
def test_requests_side_by_side_get_the_tokens_of_one_process(
    start: Callable[..., Any],
    write: Callable[..., Path],
    tmp_path: Path,
    family: str,
    parallelism: dict[str, Any],
    ranks: int,
    scheduler: str,
) -> None:
    serving = start(manifest=write(family, parallelism))
    assert f"{ranks} ranks on cpu verified" in serving.wait_for("ready after")
    port, answers = serving.port, [""] * len(PROMPTS)

    def ask(index: int) -> None:
        body = {"model": "stages", "prompt": PROMPTS[index], "max_tokens": STEPS, "temperature": 0}
        answers[index] = request(port, "v1/completions", body)["choices"][0]["text"].strip()

    threads = [threading.Thread(target=ask, args=[index]) for index in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == expected(tmp_path / "model")

    report = request(port, "lmd/report")["ranks"]
    assert [(rank["rank"], rank["strategy"], rank["pipeline"], rank["scheduler"]) for rank in report] == [
        (number, parallelism["strategy"], 2, scheduler) for number in range(ranks)
    ]
    serving.end()
