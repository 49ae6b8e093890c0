"""A control plane with one real node, the worker's image on it, and an operator that looks after a namespace.

The image is the release Dockerfiles' without the Python packages, which the node mounts from this environment, or with
LMD_FULL_IMAGE=1 the whole one, built before; on a machine without root or the programs for a node these tests are skipped with the reason.
"""

from __future__ import annotations

import base64
import importlib
import os
import socket
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from lmd_plane import foreign
from lmd_plane.binaries import NODE, PLANE, build
from lmd_plane.client import RESTRICTED, eventually
from lmd_plane.node import config, requirements
from lmd_plane.node.node import Node
from lmd_plane.operators import enrol
from lmd_plane.plane import owned
from lmd_plane.service import READY_SECONDS, Result, Service, fields

from lmd_operator.api.parse import parse
from lmd_operator.local.models import cache_directory, models_directory
from lmd_operator.version import VERSION

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "largemodel.dev_largemodeldeployments.yaml"
EXAMPLE = ROOT / "crds" / "examples" / "smollm2.yaml"
MODEL = "smollm2-135m-instruct"
IMAGE = f"lmd-worker:{VERSION}"


def say(words: str) -> None:
    print(words, file=sys.__stderr__, flush=True)


@dataclass(frozen=True, kw_only=True)
class OwnService(Service):
    """A service on the node, which tests may look into."""

    node: Node

    @contextmanager
    def reached(self) -> Iterator[str]:
        yield self.url()

    def url(self) -> str:
        """The Service's address; names are not resolved here."""
        address = self.api.get(f"/api/v1/namespaces/{self.namespace}/services/{self.name}")["spec"]["clusterIP"]
        return f"http://{address}/v1"

    def inside(self, work: Callable[[], Result]) -> Result:
        return self.node.inside(work)

    def log(self, pod: str, container: str) -> str:
        return self.node.log(self.namespace, pod, container)

    def wait_ready(self) -> None:
        super().wait_ready()
        eventually(lambda: self.inside(self._is_reached), "way to the Service")

    def _is_reached(self) -> bool:
        """Whether the node's rules lead to a pod already; they follow the endpoints by a moment."""
        with socket.create_connection((self.url().split("/")[2], 80), timeout=5):
            return True

    def processes(self, pod: Mapping[str, Any], container: str = "worker") -> list[psutil.Process]:
        return self.node.container_processes(pod["metadata"]["uid"], container)

    def first_process(self, pod: Mapping[str, Any]) -> dict[str, str]:
        return fields(Path(f"/proc/{self.processes(pod)[0].pid}/status").read_text())


def example(namespace: str, **spec: Any) -> dict[str, Any]:
    """The example with weights from the claim."""
    document = yaml.safe_load(EXAMPLE.read_text())
    document["metadata"]["namespace"] = namespace
    claim = {"claimName": "models", "path": MODEL}
    document["spec"] |= {"model": {"source": {"persistentVolumeClaim": claim}}, **spec}
    return dict(document)


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    if foreign.kubeconfig():
        pytest.skip("looks into a node, so it must be one that these tests started")
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
        plane.api.define(yaml.safe_load(CRD.read_text()))
        yield node


@pytest.fixture(scope="session")
def weights() -> Path:
    """The folder of models, with the small chat model prepared in it."""
    return models_directory(parse(yaml.safe_load(EXAMPLE.read_text())), cache_directory() / "models", {}, say)


@pytest.fixture(scope="session")
def make_claim(node: Node) -> Callable[[str, str, Path], None]:
    """Make a claim that is bound to a folder of the node."""

    def make(namespace: str, name: str, folder: Path) -> None:
        volume, modes = f"{name}-{namespace}", ["ReadOnlyMany"]
        reserved = {"claimRef": {"namespace": namespace, "name": name}}
        node.plane.api.create("/api/v1/persistentvolumes", config.volume(volume, folder, "1Gi", modes, **reserved))
        node.plane.api.create(
            f"/api/v1/namespaces/{namespace}/persistentvolumeclaims",
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": name},
                "spec": {
                    "accessModes": modes,
                    "storageClassName": config.STORAGE_CLASS,
                    "volumeName": volume,
                    "resources": {"requests": {"storage": "1Gi"}},
                },
            },
        )

    return make


@pytest.fixture(scope="module")
def namespace(node: Node, weights: Path, make_claim: Callable[[str, str, Path], None]) -> Iterator[str]:
    """A namespace that enforces the restricted standard, with a claim for the models, looked after by an operator."""
    api, name = node.plane.api, f"test-{uuid.uuid4().hex[:8]}"
    api.create_namespace(name, **RESTRICTED)
    make_claim(name, "models", weights)
    operator = enrol(node.plane, "operator", name, node.plane.site.folder)
    operator.launcher = ("nsenter", f"--net=/proc/{node.namespace_pid}/ns/net")  # as in a pod: it asks replicas what their ranks run
    operator.start(is_ready=False)
    node.inside(operator.wait_ready)
    yield name
    operator.kill()
    print(operator.words()[-5000:])


@pytest.fixture
def serve(node: Node, namespace: str) -> Iterator[Callable[..., OwnService]]:
    """Create the example with weights from the claim; it is gone afterwards."""
    made: list[OwnService] = []

    def create(*, wait: bool = True, **spec: Any) -> OwnService:
        service = OwnService(api=node.plane.api, namespace=namespace, node=node)
        service.api.create(service.path.rpartition("/")[0], example(namespace, **spec))
        made.append(service)
        if wait:
            service.wait_ready()
        return service

    yield create
    for service in made:
        service.api.delete(service.path)
        eventually(lambda service=service: not service.all_pods(), "end of the pods", seconds=READY_SECONDS)


@pytest.fixture
def serve_anywhere(request: pytest.FixtureRequest, weights: Path) -> Iterator[Callable[[], Service]]:
    """As `serve`; with LMD_TEST_EXISTING_CLUSTER=1 on the cluster of KUBECONFIG_TEST or KUBECONFIG, with nothing else of it."""
    kubeconfig = foreign.kubeconfig()
    if kubeconfig is None:
        yield request.getfixturevalue("serve")
        return
    with foreign.guest(kubeconfig, weights / MODEL, IMAGE, say) as guest:
        yield lambda: guest.serve(example(guest.namespace))


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
    folder = weights / MODEL
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def answer(question: str, tokens: int) -> str:
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            made = model.generate(**prompt, do_sample=False, max_new_tokens=tokens)
        return str(tokenizer.decode(made[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))

    return answer
