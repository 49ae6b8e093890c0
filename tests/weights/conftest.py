"""Models of random bytes, a hub that serves them, and the fetch as the pod runs it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from lmd_worker.weights.fetch import Fetched, fetch
from lmd_worker.weights.progress import Meter
from lmd_worker.weights.remote import Patience
from lmd_worker.weights.source import Order

HERE = Path(__file__).parent
REPOSITORY = "acme/small"
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 256,
}
QUICK = Patience(tries=4, first_seconds=0.01, longest_seconds=0.02)


def safetensors(*sizes: int, seed: int = 0, prefix: str = "w") -> bytes:
    """A file of tensors of bytes with these sizes, filled at random."""
    header: dict[str, Any] = {}
    position = 0
    for number, size in enumerate(sizes):
        header[f"{prefix}{number}"] = {"dtype": "U8", "shape": [size], "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + random.Random(seed).randbytes(position)


def write_model(folder: Path, *, shard_bytes: int = 300_000, shards: int = 2) -> Path:
    """A model directory of some shards with an index, a tokenizer, and things that are not to be taken."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}" * 400)
    (folder / "README.md").write_text("not taken")
    (folder / "pytorch_model.bin").write_bytes(b"not taken")
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(safetensors(shard_bytes, 1000, seed=number, prefix=f"s{number}."))
    index = {"weight_map": {f"s{number}.w0": name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def taken(folder: Path) -> dict[str, bytes]:
    """The files of a model directory that a fetch takes, with their bytes."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.suffix in (".json", ".safetensors") and not path.name.startswith(".")
    }


@dataclass
class HubServer:
    """A running hub over `folder`."""

    folder: Path
    url: str

    def faults(self, **faults: Any) -> None:
        requests.post(f"{self.url}/faults", json=faults, timeout=10).raise_for_status()

    def seen(self) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = requests.get(f"{self.url}/seen", timeout=10).json()
        return answer

    def order(self, into: Path, repository: str = REPOSITORY, revision: str = "main", **more: Any) -> Order:
        source = {"kind": "huggingFace", "repository": repository, "revision": revision, "endpoint": self.url}
        return Order.model_validate({"source": source, "into": str(into), **more})


@pytest.fixture(scope="module")
def start_hub() -> Iterator[Callable[..., HubServer]]:
    processes: list[subprocess.Popen[str]] = []

    def start(folder: Path, *arguments: str) -> HubServer:
        command = [sys.executable, str(HERE / "hub_server.py"), str(folder), *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        return HubServer(folder, f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}")

    yield start
    for process in processes:
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def shared_hub(start_hub: Callable[..., HubServer], tmp_path_factory: pytest.TempPathFactory) -> HubServer:
    folder = tmp_path_factory.mktemp("hub")
    write_model(folder / REPOSITORY)
    return start_hub(folder)


@pytest.fixture
def hub(shared_hub: HubServer) -> HubServer:
    """A hub with one small repository, without faults."""
    shared_hub.faults()
    return shared_hub


@pytest.fixture
def bring() -> Callable[..., Fetched]:
    """Fetch in this process, with little patience."""

    def bring(order: Order, variables: dict[str, str] | None = None, meter: Meter | None = None) -> Fetched:
        return fetch(order, variables or {}, meter or Meter(), QUICK)

    return bring


@pytest.fixture
def start_fetch(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `lmd-worker fetch` as a pod does."""
    running: list[subprocess.Popen[str]] = []

    def start(order: Order, **variables: str) -> subprocess.Popen[str]:
        file = tmp_path / f"source-{len(running)}.json"
        file.write_text(order.model_dump_json())
        environment = {
            "PATH": os.environ["PATH"],
            "LMD_SOURCE_FILE": str(file),
            "LMD_TERMINATION_MESSAGE_PATH": str(tmp_path / "last-words"),
            **variables,
        }
        command = [sys.executable, "-m", "lmd_worker", "fetch"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """Write a model directory."""
    return write_model
