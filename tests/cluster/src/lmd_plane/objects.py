"""Our objects and their children in one namespace, as tests look at them."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Callable
from typing import Any

from lmd_plane.client import Api, eventually
from lmd_plane.errors import RefusedError

Document = dict[str, Any]

PARENTS = "/apis/largemodel.dev/v1alpha1/namespaces/{}/largemodeldeployments"
PATHS = {
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "Service": "/api/v1/namespaces/{}/services",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "ReplicaSet": "/apis/apps/v1/namespaces/{}/replicasets",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Event": "/apis/events.k8s.io/v1/namespaces/{}/events",
    "Lease": "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
}
CHILDREN = ("ConfigMap", "NetworkPolicy", "Service", "PodDisruptionBudget", "Deployment")
SELECTOR = "?labelSelector=largemodel.dev%2Fdeployment"
_PASSING_METADATA = ("uid", "resourceVersion", "creationTimestamp", "managedFields", "selfLink", "generation")
_PASSING_ANNOTATIONS = ("deployment.kubernetes.io/revision", "largemodel.dev/applied")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


class Objects:
    """One namespace. `sample` is the manifest that new objects are made from."""

    def __init__(self, api: Api, namespace: str, sample: Document) -> None:
        self.api = api
        self.namespace = namespace
        self._sample = sample

    def path(self, kind: str, name: str = "") -> str:
        """Return the path of a child, or of all of a kind; `LargeModelDeployment` is one too."""
        root = PATHS.get(kind, PARENTS).format(self.namespace)
        return f"{root}/{name}" if name else root

    def manifest(self, name: str, change: Document | None = None) -> Document:
        """Return the sample under another name, with a merge patch of its spec."""
        document = copy.deepcopy(self._sample)
        document["metadata"] = {"name": name, "namespace": self.namespace}
        return _merge(document, {"spec": change or {}})

    def create(self, name: str, change: Document | None = None) -> Document:
        """Create one of our objects."""
        created: Document = self.api.create(self.path("LargeModelDeployment"), self.manifest(name, change))
        return created

    def change(self, name: str, change: Document) -> Document:
        """Merge into the spec of one of our objects."""
        changed: Document = self.api.patch(self.path("LargeModelDeployment", name), {"spec": change})
        return changed

    def delete(self, name: str) -> None:
        """Delete one of our objects; its children follow when the garbage collector gets to it."""
        self.api.delete(self.path("LargeModelDeployment", name))

    def get(self, kind: str, name: str) -> Document | None:
        """Return an object, None when it is not there."""
        answer = self.api.request("GET", self.path(kind, name))
        if answer.status not in (200, 404):
            raise RefusedError(f"{kind} {name}: {answer.message}")
        return answer.body if answer.status == 200 else None

    def parent(self, name: str) -> Document:
        """Return one of our objects."""
        found: Document = self.api.get(self.path("LargeModelDeployment", name))
        return found

    def condition(self, name: str, type: str) -> Document:  # noqa: A002 - as Kubernetes calls it
        """Return a condition of one of our objects, an empty one when it is not there."""
        conditions = self.parent(name).get("status", {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == type), {})

    def children(self, name: str, kinds: tuple[str, ...] = CHILDREN) -> dict[tuple[str, str], Document]:
        """Return the live children of one of our objects by kind and name."""
        found = {}
        for kind in kinds:
            for item in self.api.get(f"{self.path(kind)}{SELECTOR}%3D{name}")["items"]:
                found[kind, item["metadata"]["name"]] = item
        return found

    def is_settled(self, name: str) -> bool:
        """Whether the newest generation is Ready and nothing is left to do."""
        parent = self.parent(name)
        status = parent.get("status", {})
        conditions = {each["type"]: each["status"] for each in status.get("conditions", [])}
        current = status.get("observedGeneration") == parent["metadata"]["generation"]
        return current and conditions.get("Ready") == "True" and conditions.get("Reconciling") == "False"

    def wait_settled(self, *names: str, seconds: float = 90.0) -> None:
        """Wait until objects are Ready in their newest generation."""
        for name in names:
            try:
                eventually(lambda name=name: self.is_settled(name), f"settled {name}", seconds=seconds)  # type: ignore[misc]
            except Exception as error:
                error.add_note(json.dumps(self.parent(name).get("status", {}), indent=1))
                raise

    def wait_gone(self, name: str, *, seconds: float = 60.0) -> None:
        """Wait until an object, its children, ReplicaSets and pods are gone."""
        kinds = (*CHILDREN, "ReplicaSet", "Pod")
        eventually(
            lambda: self.get("LargeModelDeployment", name) is None and not self.children(name, kinds), f"end of {name}", seconds=seconds
        )

    def image(self, name: str) -> Document:
        """Return an object and its children without what differs from run to run."""
        parent = self.get("LargeModelDeployment", name)
        found: Document = {f"{kind}/{child}": self._plain(document) for (kind, child), document in self.children(name).items()}
        found["pods"] = len([pod for pod in self.children(name, ("Pod",)).values() if "deletionTimestamp" not in pod["metadata"]])
        if parent is not None:
            found["status"] = self._masked(parent.get("status", {}))
            del found["status"]["observedGeneration"]
        return found

    def wait_image(self, name: str, expected: Document, *, seconds: float = 60.0) -> None:
        """Wait until an object and its children look as expected. Raises with the difference."""
        try:
            eventually(lambda: self.image(name) == expected, f"expected state of {name}", seconds=seconds)
        except Exception as error:
            found = self.image(name)
            for key in sorted(found.keys() | expected.keys()):
                if found.get(key) != expected.get(key):
                    error.add_note(f"{key}\n  is       {json.dumps(found.get(key))}\n  expected {json.dumps(expected.get(key))}")
            raise

    def _plain(self, document: Document) -> Document:
        metadata = {key: value for key, value in document["metadata"].items() if key not in _PASSING_METADATA}
        annotations = {key: value for key, value in metadata.get("annotations", {}).items() if key not in _PASSING_ANNOTATIONS}
        owners = [{key: value for key, value in owner.items() if key != "uid"} for owner in metadata.get("ownerReferences", [])]
        spec = {key: value for key, value in document.get("spec", {}).items() if key not in ("clusterIP", "clusterIPs")}
        kept = {**metadata, "annotations": annotations, "ownerReferences": owners}
        rest = {key: value for key, value in document.items() if key not in ("metadata", "spec", "status")}
        plain: Document = self._masked({**rest, "metadata": kept, "spec": spec})
        return plain

    def _masked(self, document: Document) -> Document:
        text = _TIME.sub("TIME", json.dumps(document)).replace(self.namespace, "NAMESPACE")
        masked: Document = json.loads(text)
        return masked


def seconds_until(probe: Callable[[], bool], what: str, *, seconds: float = 30.0) -> float:
    """Wait for something and return how long it took, in seconds."""
    began = time.monotonic()
    eventually(probe, what, seconds=seconds)
    return time.monotonic() - began


def _merge(into: Document, change: Document) -> Document:
    """Return a document with a JSON merge patch applied."""
    merged = dict(into)
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = _merge(merged.get(key) or {}, value)
        else:
            merged[key] = value
    return merged
