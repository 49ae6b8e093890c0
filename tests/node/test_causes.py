"""Failures that are caused, and what the status says of each: one sentence with the remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lmd_plane.client import eventually

pytestmark = pytest.mark.node

SMALL = {"sharedMemory": "1Gi", "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "6Gi"}}}


def with_memory(request: str, limit: str, shared: str = "1Gi") -> dict[str, Any]:
    resources = {"requests": {"cpu": "100m", "memory": request}, "limits": {"memory": limit}}
    return {"sharedMemory": shared, "resources": resources}


def handler(config_map: str) -> dict[str, Any]:
    return {"handler": {"configMapRef": {"name": config_map}}}


def source(path: str) -> dict[str, Any]:
    return {"persistentVolumeClaim": {"claimName": "broken", "path": path}}


HANDLER = """
import socket

import torch
from ts.torch_handler.base_handler import BaseHandler


class Broken(BaseHandler):
    def initialize(self, context):
        {statement}
"""
FAULTS = {
    "broken": 'raise ValueError("this handler is broken on purpose")',
    "greedy": "torch.zeros(128 * 2**20, dtype=torch.uint8).share_memory_()",
    "hoarding": "torch.zeros(2**48, dtype=torch.uint8)",
    "listening": 'socket.create_server(("0.0.0.0", 8000))',
}
"""What a handler does instead of loading a model, by the ConfigMap that brings it."""
FAILURES = {
    "an image that is nowhere": ({"template": {**SMALL, "image": "registry.invalid/none:1"}}, "ImagePull", "spec.template.image"),
    "more memory than any node has": ({"template": with_memory("900Gi", "900Gi")}, "Unschedulable", "Insufficient memory"),
    "a weight file is missing": ({"model": {"source": source("a-shard-short")}}, "CrashLooping", "1 of 2 weight files are missing"),
    "a handler that raises": (handler("broken"), "CrashLooping", "this handler is broken on purpose"),
    "less memory than the ranks need": (
        {"template": with_memory("300Mi", "900Mi", shared="64Mi")},
        "OutOfMemory",
        "killed for lack of memory",
    ),
    "more memory than there are addresses": (handler("hoarding"), "OutOfMemory", "got no more memory"),
    "more shared memory than there is": (
        {**handler("greedy"), "template": {**SMALL, "sharedMemory": "64Mi"}},
        "SharedMemoryTooSmall",
        "spec.template.sharedMemory",
    ),
    "a handler on the front door's port": (handler("listening"), "PortInUse", "Address already in use"),
    "too little time": (
        {"engine": {"dtype": "float32", "torchServe": {"startupTimeoutSeconds": 6}}},
        "StartupTimeout",
        "startupTimeoutSeconds",
    ),
}
"""What the spec differs in, the reason of the condition, and what its message names, by what goes wrong."""


@pytest.fixture(scope="module")
def _broken(node: Any, namespace: str, make_claim: Callable[..., None], tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A claim with models that lack something, and handlers that fail."""
    root = tmp_path_factory.mktemp("broken")
    root.chmod(0o755)  # a pod's user is another one
    shutil.copytree(tiny_llama, root / "a-shard-short")
    shards = {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}
    (root / "a-shard-short" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    make_claim(namespace, "broken", root)
    for name, statement in FAULTS.items():
        data = {"handler.py": HANDLER.format(statement=statement)}
        document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
        node.plane.api.create(f"/api/v1/namespaces/{namespace}/configmaps", document)


@pytest.mark.usefixtures("_broken")
@pytest.mark.parametrize("failure", FAILURES)
def test_the_status_names_what_went_wrong_and_what_to_do(serve: Callable[..., Any], failure: str) -> None:
    spec, reason, named = FAILURES[failure]
    service = serve(wait=False, **spec)

    def told() -> bool:
        condition = service.condition("Ready")
        return condition.get("reason") == reason and named in condition["message"]

    try:
        eventually(told, f"reason {reason} that names {named}", seconds=240)
    finally:
        print(failure, service.condition("Ready"), service.condition("Accepted"))
