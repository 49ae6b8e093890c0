"""A running control plane for a session, a namespace for a test, and ways to look at both."""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lmd_plane import foreign
from lmd_plane.audit import AuditLog
from lmd_plane.binaries import build
from lmd_plane.client import Api, eventually
from lmd_plane.faults import FaultProxy
from lmd_plane.kubectl import Kubectl
from lmd_plane.plane import Cluster, Plane, owned

REPOSITORY = Path(__file__).parents[2]
CRD = REPOSITORY / "crds" / "largemodel.dev_largemodeldeployments.yaml"
NODES = 3


@pytest.fixture(scope="session")
def plane() -> Iterator[Cluster]:
    """A cluster with three fake nodes of eight GPUs.

    With LMD_TEST_EXISTING_CLUSTER=1 it is the one of KUBECONFIG_TEST or KUBECONFIG; else one of our own, gone afterwards.
    """
    kubeconfig = foreign.kubeconfig()
    if kubeconfig:
        is_ours = (kubeconfig.parent / "plane.json").exists()
        cluster = Plane.load(kubeconfig.parent) if is_ours else Cluster(kubeconfig)
        if is_ours:
            cluster.add_nodes(NODES)
        yield cluster
        return
    with owned(build(say=lambda words: print(words, file=sys.__stderr__, flush=True))) as cluster:
        cluster.add_nodes(NODES)
        yield cluster


@pytest.fixture(scope="session")
def own_plane(plane: Cluster) -> Plane:
    """The plane, when its parts may be paused and killed."""
    if not isinstance(plane, Plane):
        pytest.skip("needs a control plane that these tests started")
    return plane


@pytest.fixture(scope="session")
def api(plane: Cluster) -> Api:
    """Plain requests to the API server, as an administrator."""
    return plane.api


@pytest.fixture(scope="session")
def audit(own_plane: Plane) -> AuditLog:
    """What the API server was asked: `mark()`, then `since(mark, user_agent=...)`."""
    return own_plane.audit


@pytest.fixture
def namespace(api: Api) -> Iterator[str]:
    """A fresh namespace, in which pods can be created; deleted afterwards."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    api.create_namespace(name)
    yield name
    eventually(lambda: api.delete(f"/api/v1/namespaces/{name}"), "answer of the API server")


@pytest.fixture
def kubectl(plane: Cluster, namespace: str) -> Kubectl:
    """The client program, in the namespace of the test."""
    program = str(plane.binaries["kubectl"]) if isinstance(plane, Plane) else shutil.which("kubectl")
    assert program, "kubectl is not on PATH"
    return Kubectl(program, plane.kubeconfig, namespace)


@pytest.fixture(scope="session")
def crd(api: Api) -> dict[str, Any]:
    """Our CRD as the API server has it: applied, Established, and structural."""
    return api.define(yaml.safe_load(CRD.read_text()))


@pytest.fixture
def faults(plane: Cluster, tmp_path: Path) -> Iterator[FaultProxy]:
    """A proxy to the API server that lets things go wrong."""
    folder = tmp_path / "faults"
    folder.mkdir()
    with FaultProxy(plane.kubeconfig, folder) as proxy:
        yield proxy


@pytest.fixture
def make_pod() -> Callable[..., dict[str, Any]]:
    """A pod of one container, steered by annotations of sim.largemodel.dev."""

    def make(name: str, *, gpus: int = 0, probe: bool = False, **steering: str) -> dict[str, Any]:
        container: dict[str, Any] = {"name": "worker", "image": "none"}
        if gpus:
            container["resources"] = {"limits": {"nvidia.com/gpu": gpus}}
        if probe:
            container["startupProbe"] = {"exec": {"command": ["true"]}}
        annotations = {f"sim.largemodel.dev/{key.replace('_', '-')}": value for key, value in steering.items()}
        metadata = {"name": name, "annotations": annotations}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}

    return make
