"""`kubectl lmd`: the plugin asks the cluster of the kubeconfig, and writes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lmd_plane.plane import Cluster

from lmd_operator.api.parse import parse
from lmd_operator.resources.desired import desired, document
from lmd_operator.settings import Settings

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
CONFIG = {
    "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    "intermediate_size": 28672, "vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip


def test_the_plugin_says_why_and_what_would_change(plane: Cluster, crd: Any, kubectl: Any, namespace: str, tmp_path: Path) -> None:
    def lmd(*arguments: str) -> subprocess.CompletedProcess[str]:
        found = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": found, "KUBECONFIG": str(plane.kubeconfig)}
        command = [kubectl.command[0], "lmd", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)

    manifest = yaml.safe_load((ROOT / "crds" / "examples" / "llama-70b.yaml").read_text())
    manifest["metadata"]["namespace"] = namespace
    (tmp_path / "object.yaml").write_text(yaml.safe_dump(manifest))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    plan = ("plan", "-f", str(tmp_path / "object.yaml"), "--shape", str(tmp_path / "config.json"), "--diff")

    missing = lmd("why", "llama-70b", "--namespace", namespace)
    assert missing.returncode == 1
    assert f"no LargeModelDeployment llama-70b in the namespace {namespace}" in missing.stderr
    before = lmd(*plan)
    assert before.returncode == 0, before.stderr
    assert "DeepSpeed tensor 8, 8 GPUs a replica" in before.stdout
    assert before.stdout.count(" is created") == 5

    kubectl.apply(manifest)
    assert "has no status yet" in lmd("why", "llama-70b", "--namespace", namespace).stdout
    manifest["metadata"]["uid"] = kubectl.json("get", "largemodeldeployments", "llama-70b")["metadata"]["uid"]
    kubectl.apply(*(document(resource) for resource in desired(parse(manifest), Settings()).resources))
    assert lmd(*plan).stdout.count(" stays as it is") == 5

    manifest["spec"]["replicas"] = 3
    (tmp_path / "object.yaml").write_text(yaml.safe_dump({**manifest, "metadata": {"name": "llama-70b", "namespace": namespace}}))
    after = lmd(*plan).stdout
    assert "Deployment llama-70b changes in spec.replicas\n" in after
    assert after.count(" stays as it is") == 4
