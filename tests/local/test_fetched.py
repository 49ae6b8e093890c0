"""`lmd serve` of a model that has to be fetched: the same init container as in a pod, from a hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.model
REPOSITORY = Path(__file__).parents[2]
LMD = Path(sys.executable).with_name("lmd")
TOKEN = "hf_notforlogs"


@pytest.fixture
def hub(tiny_llama: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a hub that has the tiny model as acme/tiny, for whoever has the token."""
    (tmp_path / "hub" / "acme").mkdir(parents=True)
    (tmp_path / "hub" / "acme" / "tiny").symlink_to(tiny_llama)
    command = [sys.executable, str(REPOSITORY / "tests" / "weights" / "hub_server.py"), str(tmp_path / "hub"), "--token", TOKEN]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
    process.communicate(timeout=30)


def serve(manifest: Path, models: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(LMD), "serve", str(manifest), "--port", "0", "--models", str(models), "--once"]
    return subprocess.run(
        command, env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False
    )


def test_a_model_of_a_hub_is_fetched_once_and_served(hub: str, tmp_path: Path) -> None:
    source = {"repository": "acme/tiny", "endpoint": hub, "tokenSecretRef": {"name": "hub", "key": "token"}}
    manifest = tmp_path / "fetched.yaml"
    document = {
        "apiVersion": "largemodel.dev/v1alpha1",
        "kind": "LargeModelDeployment",
        "metadata": {"name": "fetched"},
        "spec": {"model": {"source": {"huggingFace": source}}, "engine": {"dtype": "float32"}, "accelerator": {"type": "CPU"}},
    }
    manifest.write_text(yaml.safe_dump(document))
    refused = serve(manifest, tmp_path / "models")
    assert refused.returncode == 1
    assert "is private or gated" in refused.stdout
    first = serve(manifest, tmp_path / "models", HF_TOKEN=TOKEN)
    assert first.returncode == 0, first.stdout
    assert "fetching acme/tiny@main" in first.stdout
    assert "ready after" in first.stdout
    second = serve(manifest, tmp_path / "models", HF_TOKEN=TOKEN)
    assert second.returncode == 0, second.stdout
    assert "fetching" not in second.stdout
    assert TOKEN not in first.stdout + second.stdout
