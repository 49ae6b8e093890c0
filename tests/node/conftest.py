"""A control plane with one real node, the worker's image on it, and an operator that looks after a namespace.

The image is the release Dockerfiles' without the Python packages, which the node mounts from this environment, or with
LMD_FULL_IMAGE=1 the whole one, built before; on a machine without root or the programs for a node these tests are skipped with the reason.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import socket
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from lmd_plane.binaries import NODE, PLANE, build
from lmd_plane.client import Api, eventually
from lmd_plane.node import requirements
from lmd_plane.node.config import NODE_NAME
from lmd_plane.node.node import Node
from lmd_plane.operators import enrol
from lmd_plane.plane import owned

from lmd_operator.api.parse import parse
from lmd_operator.local.models import cache_directory, models_directory
from lmd_operator.version import VERSION

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "largemodel.dev_largemodeldeployments.yaml"
EXAMPLE = ROOT / "crds" / "examples" / "smollm2.yaml"
IMAGE = f"lmd-worker:{VERSION}"
READY_SECONDS = 300
"""To a ready pod on a machine that does other things too; twenty on one that does not."""


def say(words: str) -> None:
    print(words, file=sys.__stderr__, flush=True)


@dataclass(frozen=True)
class Service:
    """One LargeModelDeployment on the node, and everything of it that a test looks at."""

    node: Node
    namespace: str
    name: str = "smollm2"

    @property
    def api(self) -> Api:
        return self.node.plane.api

    @property
    def path(self) -> str:
        return f"/apis/largemodel.dev/v1alpha1/namespaces/{self.namespace}/largemodeldeployments/{self.name}"

    def url(self) -> str:
        """The Service's address; names are not resolved here."""
        address = self.api.get(f"/api/v1/namespaces/{self.namespace}/services/{self.name}")["spec"]["clusterIP"]
        return f"http://{address}/v1"

    def pods(self) -> list[dict[str, Any]]:
        """The pods that are not going."""
        found = self.api.get(f"/api/v1/namespaces/{self.namespace}/pods?labelSelector=largemodel.dev/deployment%3D{self.name}")["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def all_pods(self) -> list[dict[str, Any]]:
        """The pods, those that are going too."""
        found = self.api.get(f"/api/v1/namespaces/{self.namespace}/pods?labelSelector=largemodel.dev/deployment%3D{self.name}")["items"]
        return list(found)

    def condition(self, kind: str) -> dict[str, Any]:
        conditions = self.api.get(self.path).get("status", {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == kind), {})

    def is_ready(self) -> bool:
        """Whether the object says that all replicas of its newest spec answer."""
        document = self.api.get(self.path)
        status = document.get("status", {})
        conditions = {each["type"]: each["status"] for each in status.get("conditions", [])}
        is_current = status.get("observedGeneration") == document["metadata"]["generation"]
        return bool(is_current and conditions.get("Ready") == "True" and conditions.get("Reconciling") == "False")

    def wait_ready(self) -> None:
        try:
            eventually(self.is_ready, "Ready object", seconds=READY_SECONDS)
            eventually(lambda: self.node.inside(self._is_reached), "way to the Service")
        except BaseException:
            for pod in self.all_pods():
                say(json.dumps(pod.get("status"), indent=1))
                for container in ("front-door", "worker"):
                    say(self.node.log(self.namespace, pod["metadata"]["name"], container)[-4000:])
            raise

    def _is_reached(self) -> bool:
        """Whether the node's rules lead to a pod already; they follow the endpoints by a moment."""
        with socket.create_connection((self.url().split("/")[2], 80), timeout=5):
            return True

    def processes(self, pod: Mapping[str, Any], container: str = "worker") -> list[psutil.Process]:
        return self.node.container_processes(pod["metadata"]["uid"], container)

    def restarts(self, pod: Mapping[str, Any], container: str = "worker") -> int:
        status = self.api.get(f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}")["status"]
        statuses = [*status.get("containerStatuses", []), *status.get("initContainerStatuses", [])]
        return int(next(each["restartCount"] for each in statuses if each["name"] == container))


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    reason, is_whole = requirements.missing(), os.environ.get("LMD_FULL_IMAGE") == "1"
    if not reason and not is_whole and sys.version_info[:2] != (3, 11):
        reason = "the worker's image has Python 3.11, and this environment's packages are for another"
    if reason:
        pytest.skip(reason)
    binaries = build([*PLANE, *NODE], say=say)
    if not is_whole:
        subprocess.run([str(ROOT / "images" / "build-thin")], check=True)
    packages = None if is_whole else Path(sysconfig.get_path("purelib"))
    with owned(binaries) as plane:
        node = Node.up(plane, binaries, packages)
        began = time.monotonic()
        node.load(IMAGE if is_whole else "lmd-worker:thin", IMAGE)
        say(f"the image was loaded in {time.monotonic() - began:.0f} s")
        definition = yaml.safe_load(CRD.read_text())
        plane.api.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        eventually(lambda: plane.api.get("/apis/largemodel.dev/v1alpha1"), "API of the CRD")
        yield node


@pytest.fixture(scope="session")
def weights() -> Path:
    """The folder of models, with the small chat model prepared in it."""
    return models_directory(parse(yaml.safe_load(EXAMPLE.read_text())), cache_directory() / "models", {}, say)


@pytest.fixture(scope="session")
def make_claim(node: Node) -> Callable[[str, str, Path], None]:
    """Make a claim that is bound to a folder of the node."""

    def make(namespace: str, name: str, folder: Path) -> None:
        volume = f"{name}-{namespace}"
        terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE_NAME]}]}]
        shared = {"accessModes": ["ReadOnlyMany"], "storageClassName": "local"}
        node.plane.api.create(
            "/api/v1/persistentvolumes",
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": volume},
                "spec": {
                    **shared,
                    "capacity": {"storage": "1Gi"},
                    "persistentVolumeReclaimPolicy": "Retain",
                    "claimRef": {"namespace": namespace, "name": name},
                    "local": {"path": str(folder)},
                    "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
                },
            },
        )
        node.plane.api.create(
            f"/api/v1/namespaces/{namespace}/persistentvolumeclaims",
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": name},
                "spec": {**shared, "volumeName": volume, "resources": {"requests": {"storage": "1Gi"}}},
            },
        )

    return make


@pytest.fixture(scope="module")
def namespace(node: Node, weights: Path, make_claim: Callable[[str, str, Path], None]) -> Iterator[str]:
    """A namespace that enforces the restricted standard, with a claim for the models, looked after by an operator."""
    api, name = node.plane.api, f"test-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    api.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    eventually(lambda: api.get(f"/api/v1/namespaces/{name}/serviceaccounts/default"), "default service account")
    make_claim(name, "models", weights)
    operator = enrol(node.plane, "operator", name, node.plane.site.folder)
    operator.launcher = ("nsenter", f"--net=/proc/{node.namespace_pid}/ns/net")  # as in a pod: it asks replicas what their ranks run
    operator.start(is_ready=False)
    node.inside(operator.wait_ready)
    yield name
    operator.kill()
    print(operator.words()[-5000:])


@pytest.fixture
def serve(node: Node, namespace: str) -> Iterator[Callable[..., Service]]:
    """Create the example with weights from the claim; it is gone afterwards."""
    made: list[Service] = []

    def create(*, wait: bool = True, **spec: Any) -> Service:
        document = yaml.safe_load(EXAMPLE.read_text())
        document["metadata"]["namespace"] = namespace
        claim = {"claimName": "models", "path": "smollm2-135m-instruct"}
        document["spec"] |= {"model": {"source": {"persistentVolumeClaim": claim}}, **spec}
        service = Service(node, namespace)
        service.api.create(service.path.rpartition("/")[0], document)
        made.append(service)
        if wait:
            service.wait_ready()
        return service

    yield create
    for service in made:
        service.api.delete(service.path)
        eventually(lambda service=service: not service.all_pods(), "end of the pods", seconds=READY_SECONDS)


@pytest.fixture
def secret(node: Node, namespace: str) -> Callable[..., None]:
    """Create or replace a Secret."""
    path = f"/api/v1/namespaces/{namespace}/secrets"

    def write(name: str, **values: str) -> None:
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        document = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}
        if node.plane.api.request("GET", f"{path}/{name}").status == 200:
            node.plane.api.request("PUT", f"{path}/{name}", document)
        else:
            node.plane.api.create(path, document)

    return write


@pytest.fixture(scope="session")
def reference(weights: Path) -> Callable[[str, int], str]:
    """What one process with plain transformers answers to a question."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    folder = weights / "smollm2-135m-instruct"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def answer(question: str, tokens: int) -> str:
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            made = model.generate(**prompt, do_sample=False, max_new_tokens=tokens)
        return str(tokenizer.decode(made[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))

    return answer
