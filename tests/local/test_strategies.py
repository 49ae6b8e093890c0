"""Every strategy under `lmd serve`, each with models of several families: the real frontend, and tokens as of one process.

`make test` takes the strategies whose ranks are cut in the most different ways, `make test-long` all of them.
"""

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
        document = {"apiVersion": "largemodel.dev/v1alpha1", "kind": "LargeModelDeployment", "metadata": {"name": "tiny"}, "spec": spec}
        file = tmp_path / "tiny.yaml"
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
        connection.request(method, f"/predictions/tiny/1.0/{path}", data, {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


STRATEGIES: dict[str, tuple[dict[str, int], int, list[str]]] = {
    "None": ({}, 1, ["llama, tied", "gpt2", "bloom"]),
    "DeepSpeed": ({"tensor": 2}, 2, ["llama, 3 key-value heads", "gpt_neox", "opt"]),
    "Tensor": ({"tensor": 2}, 2, ["llama", "phi3", "mixtral"]),
    "Expert": ({"expert": 2}, 2, ["mixtral", "qwen3_moe", "gpt_oss"]),
    "Pipeline": ({"pipeline": 2}, 2, ["gpt_oss, short window", "llama, tied", "qwen3"]),
    "PipelineTensor": ({"tensor": 2, "pipeline": 2}, 4, ["llama", "mixtral", "qwen3"]),
    "Accelerate": ({}, 1, ["llama, tied", "gpt2", "mixtral"]),
    "ZeroInference": ({"data": 2}, 2, ["gpt_neox", "llama, tied", "mixtral"]),
}
"""The degrees, the ranks they make, and families."""
EVERY_DAY = {("Expert", "mixtral"), ("Pipeline", "gpt_oss, short window"), ("PipelineTensor", "llama")}
CASES = [
    pytest.param(strategy, family, marks=[] if (strategy, family) in EVERY_DAY else pytest.mark.long)
    for strategy, (_, _, families) in STRATEGIES.items()
    for family in families
]


@pytest.mark.parametrize(("strategy", "family"), CASES)
def test_requests_side_by_side_get_the_tokens_of_one_process(
    start: Callable[..., Any], write: Callable[..., Path], tmp_path: Path, strategy: str, family: str
) -> None:
    degrees, ranks, _ = STRATEGIES[strategy]
    serving = start(manifest=write(family, {"strategy": strategy, **degrees}))
    serving.wait_for("serving")
    port, answers = serving.port, [""] * len(PROMPTS)

    def ask(index: int) -> None:
        body = {"model": "tiny", "prompt": PROMPTS[index], "max_tokens": STEPS, "temperature": 0}
        answers[index] = request(port, "v1/completions", body)["choices"][0]["text"].strip()

    threads = [threading.Thread(target=ask, args=[index]) for index in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == expected(tmp_path / "model")

    report = request(port, "lmd/report")["ranks"]
    assert [(rank["rank"], rank["strategy"], rank["pipeline"]) for rank in report] == [
        (number, strategy, degrees.get("pipeline", 1)) for number in range(ranks)
    ]
    serving.end()
