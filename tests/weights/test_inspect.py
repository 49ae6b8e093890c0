"""Saying what a model is without its weights: from a hub by ranges, from a directory, and what is refused."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from lmd_worker.errors import WorkerError
from lmd_worker.weights import inspect as inspection
from lmd_worker.weights.headers import Tensor
from lmd_worker.weights.hub import Hub
from lmd_worker.weights.inspect import Directory, Facts, inspect
from lmd_worker.weights.outline import outline
from lmd_worker.weights.source import HubSource

WANTED = {
    "family": "llama",
    "parameters": 602_000,
    "bytes": 602_000,
    "heads": 4,
    "key_value_heads": 2,
    "layers": 2,
    "experts": 0,
    "context_tokens": 512,
    "dtype": "U8",
    "quantization": "",
}


def test_a_repository_is_inspected_by_its_headers_alone(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "FIRST_BYTES", 100)
    source = HubSource(kind="huggingFace", repository="acme/small", endpoint=hub.url)
    found = inspect(Hub(source, None), "acme/small")
    assert found == Facts(revision="c0ffee" * 6 + "abcd", **WANTED)
    ranges = [entry["range"] for entry in hub.seen() if entry["path"].startswith("/cdn")]
    assert len(ranges) == 4
    assert all(int(asked.rpartition("-")[2]) < 1000 for asked in ranges), "nothing behind the headers is read"


def test_a_directory_and_the_command_say_the_same(hub) -> None:
    folder = hub.folder / "acme" / "small"
    assert inspect(Directory(folder), "here") == Facts(revision="", **WANTED)
    command = [sys.executable, "-m", "lmd_operator.cli", "inspect"]
    shown = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=True).stdout
    assert "602,000" in shown
    assert "heads         4, key-value 2" in shown
    by_hub = subprocess.run([*command, "hf:acme/small", "--endpoint", hub.url, "--json"], capture_output=True, text=True, check=True).stdout
    assert json.loads(by_hub) == {"revision": "c0ffee" * 6 + "abcd", **WANTED}


@pytest.mark.parametrize(
    ("source", "words"),
    [("hf:acme/absent", "does not exist"), ("hf:../a", "its repository"), ("s3://x", "its uri"), ("/absent", "is no directory")],
)
def test_what_cannot_be_inspected_is_said_in_a_sentence(hub, source: str, words: str) -> None:
    command = [sys.executable, "-m", "lmd_worker", "inspect", source, "--endpoint", hub.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_any_spoilt_model_is_refused_in_words(hub, tmp_path: Path) -> None:
    chance = random.Random(5)
    names = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    for number in range(60):
        folder = tmp_path / str(number)
        folder.mkdir()
        for path in (hub.folder / "acme" / "small").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        spoilt = folder / names[number % len(names)]
        data = bytearray(spoilt.read_bytes())
        for _ in range(3):
            data[chance.randrange(min(len(data), 120))] = chance.randrange(256)
        spoilt.write_bytes(data[: chance.randrange(1, len(data))] if number % 2 else data)
        try:
            inspect(Directory(folder), "here")
        except WorkerError as error:
            assert str(error).isprintable()  # noqa: PT017 - most are refused, some stay readable


def test_the_outline_tells_kinds_of_tensors_for_the_planner(hub) -> None:
    command = [sys.executable, "-m", "lmd_operator.cli", "inspect", str(hub.folder / "acme" / "small"), "--outline"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told["config"]["model_type"] == "llama"
    assert sum(math.prod(dimensions) * count for _, _, dimensions, count in told["tensors"]) == 602_000


def test_an_outline_leaves_out_layers_that_are_not_loaded() -> None:
    names = ["model.layers.0.mlp.experts.7.w1.weight", "model.layers.1.mlp.experts.11.w1.weight", "model.layers.2.mlp.experts.0.w1.weight"]
    tensors = {name: Tensor("BF16", (4, 2), 16) for name in names} | {"model.norm.weight": Tensor("BF16", (4,), 8)}
    assert outline(tensors, 2) == [["model.layers.*.mlp.experts.*.w1.weight", "BF16", [4, 2], 2], ["model.norm.weight", "BF16", [4], 1]]
