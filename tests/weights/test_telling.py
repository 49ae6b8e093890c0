"""What a Job says of a model: whole in its last words, whatever the model, and a reason where it cannot."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from lmd_worker.errors import ModelRefusedError
from lmd_worker.lastwords import LIMIT_BYTES
from lmd_worker.weights.headers import Tensor
from lmd_worker.weights.inspect import Read
from lmd_worker.weights.telling import kept, told

CONFIG = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "layer_types": ["full_attention"] * 61,
}


def unpacked(words: str) -> dict[str, Any]:
    return json.loads(zlib.decompress(base64.b64decode(json.loads(words)["outline"])))


def inspected(order: dict[str, Any], folder: Path, **variables: str) -> tuple[int, str]:
    """Run the command as a Job's pod does; return its status and its last words."""
    (folder / "source.json").write_text(json.dumps(order))
    words = folder / "last-words"
    environment = {
        "PATH": os.environ["PATH"],
        "LMD_SOURCE_FILE": str(folder / "source.json"),
        "LMD_TERMINATION_MESSAGE_PATH": str(words),
        **variables,
    }
    done = subprocess.run([sys.executable, "-m", "lmd_worker", "inspect"], env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, words.read_text()


def test_a_job_tells_what_a_repository_is(hub, tmp_path: Path) -> None:
    hub.faults()
    order = {"source": {"kind": "huggingFace", "repository": "acme/small", "endpoint": hub.url}, "into": "/models/small"}
    status, words = inspected(order, tmp_path)
    assert status == 0, words
    found = json.loads(words)
    assert (found["model"]["family"], found["model"]["revision"], found["model"]["layers"]) == ("llama", "c0ffee" * 6 + "abcd", 2)
    assert unpacked(words)["config"]["num_attention_heads"] == 4
    assert unpacked(words)["tensors"]
    ranges = [entry["range"] for entry in hub.seen() if entry["path"].startswith("/cdn")]
    assert sum(int(asked.rpartition("-")[2]) - int(asked.partition("=")[2].partition("-")[0]) for asked in ranges) < 200_000


def test_a_job_tells_what_a_directory_is(hub, tmp_path: Path) -> None:
    folder = str(hub.folder / "acme" / "small")
    status, words = inspected({"source": {"kind": "directory", "path": folder}, "into": folder}, tmp_path)
    assert (status, json.loads(words)["model"]["family"]) == (0, "llama")


@pytest.mark.parametrize(
    ("repository", "reason"),
    [("acme/absent", "SourceNotFound: "), ("acme/small", "SourceInvalid: ")],
    ids=["nothing there", "a configuration that is none"],
)
def test_why_it_cannot_is_told_with_a_reason(start_hub, make_model, tmp_path: Path, repository: str, reason: str) -> None:
    folder = tmp_path / "hub"
    make_model(folder / "acme" / "small")
    (folder / "acme" / "small" / "config.json").write_text("{}")
    server = start_hub(folder)
    order = {"source": {"kind": "huggingFace", "repository": repository, "endpoint": server.url}, "into": "/models/small"}
    status, words = inspected(order, tmp_path, HF_TOKEN="hf_secret")
    assert status == 1
    assert words.startswith(reason)
    assert "hf_secret" not in words


def test_the_largest_mixture_fits_into_the_last_words() -> None:
    tensors = {}
    for layer in range(61):
        for expert in range(256):
            for name in ("gate_proj", "up_proj", "down_proj"):
                prefix = f"model.layers.{layer}.mlp.experts.{expert}.{name}"
                tensors[f"{prefix}.weight"] = Tensor("F8_E4M3", (2048, 7168), 2048 * 7168)
                tensors[f"{prefix}.weight_scale_inv"] = Tensor("F32", (16, 56), 16 * 56 * 4)
    extra = {"id2label": {str(number): "a" * 60 for number in range(1000)}, "words": ["b" * 200], "text_config": {"hidden_size": 7168}}
    words = told(Read("c" * 40, {**CONFIG, **extra}, tensors, ("model.safetensors",)), "acme/large")
    assert len(words) < LIMIT_BYTES
    assert [kind[3] for kind in unpacked(words)["tensors"]] == [61 * 256] * 4 + [61 * 256] * 2
    assert unpacked(words)["config"]["layer_types"] == CONFIG["layer_types"]


def test_what_would_be_cut_is_refused_with_the_way_out() -> None:
    strange = {f"model.{os.urandom(20).hex()}.weight": Tensor("F32", (number, 7), number * 28) for number in range(1, 400)}
    with pytest.raises(ModelRefusedError, match=r"spec\.parallelism\.tensor as a number"):
        told(Read("", CONFIG, strange, ("model.safetensors",)), "acme/strange")


def test_a_plan_needs_numbers_and_short_words_only() -> None:
    config = {"a": 1, "b": "x" * 65, "c": [1] * 513, "d": {"e": {"f": {"g": 1}}, "h": None}, "i": [["nested"]], "j": True, "k": [1, "two"]}
    assert kept(config) == {"a": 1, "d": {"e": {}}, "j": True, "k": [1, "two"]}
