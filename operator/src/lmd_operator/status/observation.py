"""What was found in the cluster about one object, and the counts that are read from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lmd_operator.api.status import Revision
from lmd_operator.observed import DeploymentState, PodState, Progress, TaskState, Verdict


@dataclass(frozen=True, slots=True)
class Observed:
    """One object's children as they are.

    `revisions` are the kept ConfigMaps, newest first. `failures` are sentences of children that the API server refused
    and will refuse again (a foreign object, 403, 422); `awaited` is one of a child that is made in a moment, empty without any.
    `progress` is what fetching pods say of themselves, by pod. `pods` are replicas; `fill` is the Job that fills the cache.
    `verdicts` is what replicas told of their ranks, by pod; None for one that is still being asked.
    """

    deployment: DeploymentState | None
    pods: tuple[PodState, ...]
    revisions: tuple[Revision, ...]
    failures: tuple[str, ...]
    progress: Mapping[str, Progress] = field(default_factory=dict)
    fill: TaskState | None = None
    verdicts: Mapping[str, Verdict | None] = field(default_factory=dict)
    awaited: str = ""

    def bringing(self) -> list[PodState]:
        """Return the pods that may bring weights: those of the Job that fills the cache, then the replicas, by name."""
        filling = self.fill.pods if self.fill is not None else ()
        return [*sorted((pod for pod in filling if not pod.is_going), key=_name_of), *self.live()]

    def is_bringing(self) -> bool:
        """Return whether any of them is at it now."""
        return any(pod.fetch is not None and pod.fetch.is_running for pod in self.bringing())

    def live(self) -> list[PodState]:
        """Return the pods that neither end nor have ended, by name."""
        return live(self.pods)

    def ready(self) -> list[PodState]:
        """Return the pods that answer requests, by name; one that is ending gets no new requests and does not count."""
        return [pod for pod in self.live() if pod.is_ready]

    def ending(self) -> list[PodState]:
        """Return the pods that are ending, by name; they still hold their devices."""
        return sorted((pod for pod in self.pods if pod.is_going and not pod.is_ended), key=_name_of)

    def is_settled(self, asked: int, revision: str) -> bool:
        """Return whether nothing is left to do: every replica is new, ready and counted, and no old one is left.

        Both the Deployment and the pods are asked: their watches do not run in step, and only the Deployment knows of
        a pod template that changed under the same revision.
        """
        deployment = self.deployment
        if self.failures or self.awaited or deployment is None or deployment.observed_generation < deployment.generation:
            return False
        if asked == 0:
            return deployment.replicas == 0 and not self.ending() and not self.ready()
        counts = (deployment.replicas, deployment.updated)
        new = [pod for pod in self.ready() if pod.revision == revision]
        return counts == (asked, asked) and deployment.ready >= asked and len(new) >= asked

    def is_past_deadline(self) -> bool:
        """Return whether Kubernetes gave up on the newest pod template, not on an earlier one."""
        deployment = self.deployment
        return deployment is not None and deployment.is_stuck and deployment.observed_generation >= deployment.generation


def live(pods: tuple[PodState, ...]) -> list[PodState]:
    """Return the pods that neither end nor have ended, by name."""
    return sorted((pod for pod in pods if not (pod.is_going or pod.is_ended)), key=_name_of)


def current_revision(ready: list[PodState], updated: str, previous: str) -> str:
    """Return the revision all ready replicas run; while two are mixed, the older one; while none is ready, the last known."""
    found = {pod.revision for pod in ready if pod.revision}
    if not found:
        return previous
    if len(found) == 1 or previous in found:
        return previous if previous in found else found.pop()
    return min(found - {updated})


def _name_of(pod: PodState) -> str:
    return pod.name
