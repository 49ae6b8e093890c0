"""The kinds we read and write, and their paths in the API."""

from __future__ import annotations

from dataclasses import dataclass

from lmd_operator.api.v1alpha1 import GROUP, PLURAL, VERSION
from lmd_operator.names import FIELD_MANAGER, LABEL_MANAGED_BY


@dataclass(frozen=True, slots=True)
class Kind:
    """A resource type: `group` is empty for the core API, `name` is the singular CamelCase kind."""

    group: str
    version: str
    plural: str
    name: str

    @property
    def api_version(self) -> str:
        """As in a manifest."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the URL path; without a namespace it spans all of them."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root, *(["namespaces", namespace] if namespace else []), self.plural, name, subresource]
        return "/".join(part for part in parts if part)


LARGE_MODEL_DEPLOYMENT = Kind(GROUP, VERSION, PLURAL, "LargeModelDeployment")
CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
SERVICE = Kind("", "v1", "services", "Service")
JOB = Kind("batch", "v1", "jobs", "Job")
POD = Kind("", "v1", "pods", "Pod")
DEPLOYMENT = Kind("apps", "v1", "deployments", "Deployment")
DISRUPTION_BUDGET = Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
NETWORK_POLICY = Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
EVENT = Kind("events.k8s.io", "v1", "events", "Event")
LEASE = Kind("coordination.k8s.io", "v1", "leases", "Lease")

CHILDREN = (CONFIG_MAP, NETWORK_POLICY, SERVICE, DISRUPTION_BUDGET, JOB, DEPLOYMENT)
"""What we apply, in this order; each is owned by its object."""
WATCHED = (*CHILDREN, POD)
"""What we keep caches of."""
SELECTORS = {POD: f"{LABEL_MANAGED_BY}={FIELD_MANAGER}"}
"""What is watched of a kind, where that is not what has the label of an object: pods of Jobs do not have it."""
BY_NAME = {kind.name: kind for kind in (*WATCHED, EVENT, LEASE, LARGE_MODEL_DEPLOYMENT)}
