"""A cluster that is not ours: tests bring all they need in a namespace of their own, and leave the cluster as it was.

Nothing is used but its kubeconfig; the images have to be on its nodes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lmd_plane.binaries import Say, build
from lmd_plane.client import DEFINITIONS, RESTRICTED, Api, eventually
from lmd_plane.components import LOOPBACK
from lmd_plane.errors import OverdueError, PlaneError
from lmd_plane.kubectl import Kubectl
from lmd_plane.service import Result, Service, fields

ROOT = Path(__file__).parents[4]
CHART = ROOT / "charts" / "lmd-operator"
CRD = ROOT / "crds" / "largemodel.dev_largemodeldeployments.yaml"
CLAIM = "models"
PREFIX = "lmd-test-"
"""Of the namespaces that guests make."""
START_SECONDS = 300.0
"""To a running pod: its volume is made and mounted, its image is there."""
COPY_SECONDS = 1800.0
"""To bring the model, half a gigabyte, through the API server."""
GONE_SECONDS = 300.0
_MODELS = "/models"
_USER = 10001
"""The worker image's."""
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
_CAUSES = ("ErrImagePull", "ErrImageNeverPull", "ImagePullBackOff", "InvalidImageName")


def kubeconfig() -> Path | None:
    """Return the kubeconfig of the cluster that tests are to use instead of one of their own, None if there is none such.

    It is that of KUBECONFIG_TEST or KUBECONFIG, with LMD_TEST_EXISTING_CLUSTER=1.
    """
    if os.environ.get("LMD_TEST_EXISTING_CLUSTER") != "1":
        return None
    named = os.environ.get("KUBECONFIG_TEST") or os.environ.get("KUBECONFIG")
    assert named, "LMD_TEST_EXISTING_CLUSTER=1 needs KUBECONFIG_TEST or KUBECONFIG"
    return Path(named).absolute()


@dataclass(frozen=True, kw_only=True)
class ForeignService(Service):
    """A service that is reached by kubectl alone."""

    kubectl: Kubectl

    @contextmanager
    def reached(self) -> Iterator[str]:
        """Forward a port of ours to the Service."""
        with self.kubectl.forwarded(f"service/{self.name}", 80) as port:
            yield f"http://{LOOPBACK}:{port}/v1"

    def inside(self, work: Callable[[], Result]) -> Result:
        """Do the work: the forwarded port is here."""
        return work()

    def log(self, pod: str, container: str) -> str:
        """Return what kubectl shows, errors too."""
        answer = self.kubectl.run("logs", pod, "--container", container)
        return answer.stdout + answer.stderr

    def first_process(self, pod: Mapping[str, Any]) -> dict[str, str]:
        """Return what is seen from inside the container."""
        return fields(self.kubectl("exec", pod["metadata"]["name"], "--container", "worker", "--", "cat", "/proc/1/status"))


@dataclass(frozen=True)
class Guest:
    """A namespace in a cluster of somebody else's, with a model in a claim and an operator that looks after it alone."""

    api: Api
    kubectl: Kubectl
    namespace: str
    selector: Mapping[str, str]
    """The node that has the model: all pods run there."""

    def serve(self, document: dict[str, Any]) -> ForeignService:
        """Create an object with the model from the claim; return when all replicas answer."""
        service = ForeignService(api=self.api, namespace=self.namespace, name=document["metadata"]["name"], kubectl=self.kubectl)
        document["spec"]["template"] = {**document["spec"].get("template", {}), "nodeSelector": dict(self.selector)}
        self.api.create(service.path.rpartition("/")[0], document)
        service.wait_ready()
        return service


@contextmanager
def guest(access: Path, model: Path, image: str, say: Say) -> Iterator[Guest]:
    """Be a guest for the length of the block, with a model's directory and the worker's image.

    Raises `PlaneError` when the cluster lacks something that the tests may not bring.
    """
    api, namespace = Api(access), f"{PREFIX}{uuid.uuid4().hex[:8]}"
    kubectl = Kubectl(_program("kubectl", say), access, namespace)
    _require_welcome(api)
    with _definition(api), _namespace(api, namespace):
        selector = _brought(api, kubectl, namespace, model, image, say)
        _install(api, kubectl, namespace, selector, say)
        yield Guest(api, kubectl, namespace, selector)


def _program(name: str, say: Say) -> str:
    """Return the user's program, or the one that tests build."""
    return shutil.which(name) or str(build([name], say=say)[name])


def _require_welcome(api: Api) -> None:
    classes = api.get("/apis/storage.k8s.io/v1/storageclasses")["items"]
    if not any(each["metadata"].get("annotations", {}).get(_DEFAULT_CLASS) == "true" for each in classes):
        raise PlaneError(f"the cluster has no default StorageClass: annotate one of its classes with {_DEFAULT_CLASS}=true")
    for deployment in api.get("/apis/apps/v1/deployments?labelSelector=app.kubernetes.io/name%3Dlmd-operator")["items"]:
        metadata, container = deployment["metadata"], deployment["spec"]["template"]["spec"]["containers"][0]
        is_choosy = any(each["name"] == "LMD_OPERATOR_NAMESPACES" and each.get("value") for each in container.get("env", []))
        if deployment["spec"]["replicas"] and not is_choosy:
            name = f"{metadata['namespace']}/{metadata['name']}"
            raise PlaneError(f"the operator {name} looks after all namespaces, the tests' too: scale it to 0, or take another cluster")


@contextmanager
def _definition(api: Api) -> Iterator[None]:
    """Have the CRD for the length of the block; one that was there before stays as it was."""
    definition = yaml.safe_load(CRD.read_text())
    path = f"{DEFINITIONS}/{definition['metadata']['name']}"
    if api.request("GET", path).status == 200:
        yield
        return
    try:
        api.define(definition)
        yield
    finally:
        api.delete(path)
        _gone(api, path)


@contextmanager
def _namespace(api: Api, name: str) -> Iterator[None]:
    """Have a namespace that enforces the restricted standard for the length of the block."""
    try:
        api.create_namespace(name, **RESTRICTED)
        yield
    finally:
        api.delete(f"/api/v1/namespaces/{name}")
        _gone(api, f"/api/v1/namespaces/{name}")


def _brought(api: Api, kubectl: Kubectl, namespace: str, model: Path, image: str, say: Say) -> dict[str, str]:
    """Copy the model into a claim by a pod that mounts it; return the labels that select its node."""
    size = sum(file.stat().st_size for file in model.rglob("*") if file.is_file())
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": f"{2 * size // 2**20 + 64}Mi"}}}
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "porter",
        "image": image,
        "command": ["sleep", "infinity"],
        "securityContext": security,
        "volumeMounts": [{"name": CLAIM, "mountPath": _MODELS}],
    }
    identity = {"runAsNonRoot": True, "runAsUser": _USER, "fsGroup": _USER, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = {
        "terminationGracePeriodSeconds": 0,
        "securityContext": identity,
        "containers": [container],
        "volumes": [{"name": CLAIM, "persistentVolumeClaim": {"claimName": CLAIM}}],
    }
    kubectl.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": claim},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "porter"}, "spec": pod},
    )
    _wait_pods(api, namespace, lambda pods: bool(pods) and pods[0]["status"]["phase"] == "Running", "running pod for the model")
    say(f"bringing {size / 1e6:.0f} MB")
    with subprocess.Popen(["tar", "--create", f"--directory={model.parent}", model.name], stdout=subprocess.PIPE) as packing:
        unpack = ["exec", "--stdin", "porter", "--", "tar", "--extract", f"--directory={_MODELS}"]
        subprocess.run([*kubectl.command, *unpack], stdin=packing.stdout, check=True, timeout=COPY_SECONDS)
    node = api.get(f"/api/v1/namespaces/{namespace}/pods/porter")["spec"]["nodeName"]
    kubectl("delete", "pod", "porter")
    label = "kubernetes.io/hostname"
    return {label: api.get(f"/api/v1/nodes/{node}")["metadata"]["labels"][label]}


def _install(api: Api, kubectl: Kubectl, namespace: str, selector: Mapping[str, str], say: Say) -> None:
    """Install the chart with a Role in its own namespace and nothing outside of it."""
    off = {"create": False}
    values = {"replicas": 1, "watchNamespaces": [namespace], "nodeSelector": dict(selector), "crds": off, "userRoles": off}
    template = [_program("helm", say), "template", "lmd-operator", str(CHART), "--namespace", namespace, "--values", "-"]
    rendered = subprocess.run(template, input=json.dumps(values), capture_output=True, text=True, check=True).stdout
    kubectl("apply", "--filename", "-", given=rendered)
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/lmd-operator"
    _wait_pods(api, namespace, lambda _: bool(api.get(path).get("status", {}).get("readyReplicas")), "ready operator")


def _wait_pods(api: Api, namespace: str, condition: Callable[[list[dict[str, Any]]], bool], what: str) -> None:
    """Wait for something of the namespace's pods.

    Raises `PlaneError` with the remedy once one of them lacks its image, and with what is said of them when it takes too long.
    """
    pods: list[dict[str, Any]] = []

    def holds() -> bool:
        pods[:] = api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
        for pod in pods:
            for status in pod["status"].get("containerStatuses", []):
                if status.get("state", {}).get("waiting", {}).get("reason") in _CAUSES:
                    node, image = pod["spec"]["nodeName"], status["image"]
                    raise PlaneError(f"node {node} has no image {image}: bring it, on kind by `kind load docker-image {image}`")
        return condition(pods)

    try:
        eventually(holds, what, seconds=START_SECONDS)
    except OverdueError as error:
        conditions = [each for pod in pods for each in pod["status"].get("conditions", [])]
        told = [each["message"] for each in conditions if each["status"] == "False" and each.get("message")]
        raise PlaneError("\n".join([str(error), *told])) from error


def _gone(api: Api, path: str) -> None:
    eventually(lambda: api.request("GET", path).status == 404, f"end of {path}", seconds=GONE_SECONDS)
