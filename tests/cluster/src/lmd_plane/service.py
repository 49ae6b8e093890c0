"""One LargeModelDeployment in a cluster, as its users see it, wherever that cluster is."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from lmd_plane.client import Api, eventually

READY_SECONDS = 300
"""To a ready pod on a machine that does other things too; twenty on one that does not."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Service(ABC):
    """One LargeModelDeployment, and everything of it that a test looks at."""

    api: Api
    namespace: str
    name: str = "smollm2"

    @abstractmethod
    def reached(self) -> AbstractContextManager[str]:
        """Return the base URL of OpenAI's clients, good inside the block and `inside`."""

    @abstractmethod
    def inside(self, work: Callable[[], Result]) -> Result:
        """Do work where the base URL leads to the Service."""

    @abstractmethod
    def log(self, pod: str, container: str) -> str:
        """Return what a container said."""

    @abstractmethod
    def first_process(self, pod: Mapping[str, Any]) -> dict[str, str]:
        """Return what Linux says of the first process of a pod's worker (proc_pid_status)."""

    @property
    def path(self) -> str:
        """Where the object is."""
        return f"/apis/largemodel.dev/v1alpha1/namespaces/{self.namespace}/largemodeldeployments/{self.name}"

    def pods(self) -> list[dict[str, Any]]:
        """Return the pods that are not going."""
        return [pod for pod in self.all_pods() if "deletionTimestamp" not in pod["metadata"]]

    def all_pods(self) -> list[dict[str, Any]]:
        """Return the pods, those that are going too."""
        found = self.api.get(f"/api/v1/namespaces/{self.namespace}/pods?labelSelector=largemodel.dev/deployment%3D{self.name}")["items"]
        return list(found)

    def condition(self, kind: str) -> dict[str, Any]:
        """Return a condition of the object, empty if it has none such."""
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
        """Wait until all replicas answer; print what is known when they do not."""
        try:
            eventually(self.is_ready, "Ready object", seconds=READY_SECONDS)
        except BaseException:
            print(json.dumps(self.api.get(self.path).get("status"), indent=1), file=sys.__stderr__)
            for pod in self.all_pods():
                print(json.dumps(pod.get("status"), indent=1), file=sys.__stderr__)
                for container in ("front-door", "worker"):
                    print(self.log(pod["metadata"]["name"], container)[-4000:], file=sys.__stderr__, flush=True)
            raise

    def restarts(self, pod: Mapping[str, Any], container: str = "worker") -> int:
        """Return how often a container of a pod was started again."""
        status = self.api.get(f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}")["status"]
        statuses = [*status.get("containerStatuses", []), *status.get("initContainerStatuses", [])]
        return int(next(each["restartCount"] for each in statuses if each["name"] == container))


def fields(status: str) -> dict[str, str]:
    """Return the fields of a process' status as Linux prints them."""
    return {name: value.strip() for name, value in (line.split(":", 1) for line in status.splitlines())}
