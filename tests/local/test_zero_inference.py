"""Strategy ZeroInference through the real frontend, as a user serves it: rendered files, ranks that share the parameters, equal answers."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from .conftest import Plain, Serving

pytestmark = pytest.mark.model

PROMPTS = {"The sea is": 3, "Once upon a time there was": 6, "Seven": 4}
ANSWER_SECONDS = 300


def ask(address: str, prompt: str, max_tokens: int) -> str:
    body = json.dumps({"model": "smollm2", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}).encode()
    request = urllib.request.Request(f"{address}/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
        text: str = json.loads(response.read())["choices"][0]["text"]
    return text


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_model_whose_parameters_stay_on_the_host_answers_as_plain_transformers(
    start: Callable[..., Serving], example: Path, short_smollm2: Path, tmp_path: Path, ranks: int
) -> None:
    manifest = yaml.safe_load(example.read_text())
    manifest["spec"]["model"] = {"source": {"path": {"path": f"/models/{short_smollm2.name}"}}}
    manifest["spec"]["parallelism"] = {"strategy": "ZeroInference", "data": ranks}
    manifest["spec"]["engine"] |= {"contextTokens": 64}
    path = tmp_path / "manifest.yaml"
    path.write_text(yaml.safe_dump(manifest))
    serving = start("--models", str(short_smollm2.parent), manifest=path)
    serving.wait_for("serving")
    held = serving.wait_for("verified, holding").split("holding ")[1].split(" of ")[0].split(", ")
    assert len(held) == ranks
    assert len(set(held)) == 1, "even parts"
    address = serving.wait_for("base URL for OpenAI clients").split()[-1]
    with ThreadPoolExecutor(len(PROMPTS)) as clients:
        answers = dict(zip(PROMPTS, clients.map(lambda item: ask(address, *item), PROMPTS.items()), strict=True))
    plain = Plain(short_smollm2)
    assert answers == {prompt: plain.answer(prompt, count)[0] for prompt, count in PROMPTS.items()}
    serving.end()
