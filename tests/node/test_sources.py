"""Weights that come to a pod of a real node: fetched from a hub by its init container, and mounted from an image."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from lmd_plane.client import eventually
from lmd_plane.errors import OverdueError
from lmd_plane.node.config import NODE_ADDRESS

pytestmark = pytest.mark.node

HUB = Path(__file__).parents[1] / "weights" / "hub_server.py"
TOKEN = "hf_notforlogs"
PROMPT = "w5 w17 w200 w3"
TOKENS = 8
SLOW_SECONDS = 4.0
"""Between pieces of 64 KiB on each of the fetch's connections: longer than the ten seconds between two news of progress, all together."""


@pytest.fixture
def hub(node: Any, tiny_llama: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a hub in the node's network that has the tiny model as acme/tiny, for whoever has the token."""
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "tiny").symlink_to(tiny_llama)
    enter = ["nsenter", f"--net=/proc/{node.namespace_pid}/ns/net"]
    command = [*enter, sys.executable, str(HUB), str(tmp_path), "--token", TOKEN, "--host", NODE_ADDRESS]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield f"http://{NODE_ADDRESS}:{json.loads(process.stdout.readline())['port']}"
    process.communicate(timeout=30)


@pytest.fixture(scope="session")
def tiny_answer(tiny_llama: Path) -> str:
    """What one process answers."""
    import torch
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    prompt = tokenizer([PROMPT], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        made = model.generate(prompt, do_sample=False, max_new_tokens=TOKENS)
    return str(tokenizer.decode(made[0, prompt.shape[1] :]))


def answer(service: Any) -> str:
    """What the service answers."""

    def ask() -> str:
        with openai.OpenAI(base_url=service.url(), api_key="none", max_retries=0, timeout=120) as client:
            made = client.completions.create(model="smollm2", prompt=PROMPT, max_tokens=TOKENS, temperature=0)
            return made.choices[0].text.strip()

    return str(service.node.inside(ask))


def everything_written(service: Any) -> str:
    """All that is kept about a service where many may read it: objects, Events and logs."""
    api, at = service.api, f"/namespaces/{service.namespace}"
    paths = [f"/api/v1{at}/pods", f"/api/v1{at}/configmaps", f"/apis/events.k8s.io/v1{at}/events", f"/apis/apps/v1{at}/deployments"]
    texts = [json.dumps(api.get(path)) for path in (*paths, service.path)]
    containers = ("fetch", "front-door", "worker")
    texts += [service.node.log(service.namespace, pod["metadata"]["name"], each) for pod in service.all_pods() for each in containers]
    return "\n".join(texts)


def test_a_model_of_a_hub_is_fetched_while_the_status_tells_and_then_answers(
    serve: Callable[..., Any], secret: Callable[..., None], hub: str, tiny_answer: str, node: Any
) -> None:
    secret("hub", token=TOKEN)
    node.inside(lambda: requests.post(f"{hub}/faults", json={"slow": SLOW_SECONDS}, timeout=10).raise_for_status())
    source = {"repository": "acme/tiny", "endpoint": hub, "tokenSecretRef": {"name": "hub", "key": "token"}}
    service = serve(wait=False, model={"source": {"huggingFace": source}}, engine={"dtype": "float32", "contextTokens": 256})

    def status() -> dict[str, Any]:
        return dict(service.api.get(service.path).get("status", {}))

    try:
        eventually(lambda: 0 < status().get("weights", {}).get("percent", 0) < 100, "a fetch that is under way, in the status", seconds=120)
    except OverdueError:
        print(status(), *(service.node.log(service.namespace, pod["metadata"]["name"], "fetch") for pod in service.all_pods()))
        raise
    node.inside(lambda: requests.post(f"{hub}/faults", json={}, timeout=10).raise_for_status())
    service.wait_ready()
    assert answer(service) == tiny_answer
    told = status()
    assert (told["weights"]["percent"], told["model"]["family"]) == (100, "llama")
    assert told["weights"]["revision"].startswith("c0ffee")
    assert TOKEN not in everything_written(service)


def test_a_model_in_an_image_is_mounted_and_answers(
    serve: Callable[..., Any], tiny_llama: Path, tiny_answer: str, node: Any, tmp_path: Path
) -> None:
    name = "lmd-test-model:1"
    recipe = tmp_path / "Dockerfile"
    recipe.write_text("FROM scratch\nCOPY . /tiny/\n")
    subprocess.run(["buildah", "build", "--quiet", "--tag", name, "--file", str(recipe), str(tiny_llama)], check=True, capture_output=True)
    try:
        node.load(name)
    finally:
        subprocess.run(["buildah", "rmi", name], check=True, capture_output=True)
    source = {"reference": f"docker.io/library/{name}", "path": "/tiny", "pullPolicy": "Never"}
    service = serve(model={"source": {"image": source}}, engine={"dtype": "float32", "contextTokens": 256})
    assert answer(service) == tiny_answer
