"""Objects as caches keep them: identity, ownership, and what a reconcile needs to know, nothing else.

Of a child the parts we could own are kept as packed JSON, in the API server's own order, so that drift can be told from
what we sent without keeping whole trees of Python objects; of a pod and a Deployment, the parts of the status that a user is
told about. Words that records have in common are one object each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from sys import intern
from typing import Any

from pydantic_core import from_json, to_json

from lmd_operator.cluster.kinds import DEPLOYMENT, JOB, POD, Kind
from lmd_operator.cluster.packing import Packed, Packer
from lmd_operator.names import LABEL_DEPLOYMENT, LABEL_REVISION, LABEL_TASK_OF
from lmd_operator.observed import DeploymentState, JobState, PodState, deployment_state, job_state, pod_state

Document = dict[str, Any]
State = DeploymentState | JobState | PodState
_ROLLOUT = "deployment.kubernetes.io/revision"
"""Annotation that Kubernetes itself puts on every Deployment once it has made a ReplicaSet."""


@dataclass(frozen=True, slots=True)
class Record:
    """One object; versions of it that differ in nothing else are equal.

    `owner` is the name of our object it belongs to, by label or by controller reference. `controller` is the kind and the name of
    its controller and `owner_uid` the uid, both empty without one. `content` is what we could have written, None for a pod.
    """

    kind: Kind
    namespace: str
    name: str
    uid: str
    version: int = field(compare=False)
    created: str
    owner: str
    controller: str
    owner_uid: str
    revision: str
    is_going: bool
    digest: bytes
    content: Packed | None
    state: State | None

    @property
    def goes_by_itself(self) -> bool:
        """Whether Kubernetes removes it before long: a Job that is finished and has a time to live."""
        is_finished = isinstance(self.state, JobState) and self.state.is_finished
        return is_finished and self.owned_fields()["spec"].get("ttlSecondsAfterFinished") is not None

    def owned_fields(self) -> Document:
        """Return the fields of the live object that a manifest can set."""
        fields: Document = from_json(self.content.text()) if self.content else {}
        return fields


def record(kind: Kind, document: Document, packer: Packer, known: Record | None = None) -> Record:
    """Return the record of an object as the API server sends it; what `known` holds packed already is not packed again."""
    metadata = document["metadata"]
    labels = metadata.get("labels") or {}
    controller: Document = next((owner for owner in metadata.get("ownerReferences") or [] if owner.get("controller")), {})
    content = b"" if kind is POD else to_json(owned_fields(document))
    digest = hashlib.blake2b(content, digest_size=12).digest()
    packed = known.content if known is not None and known.digest == digest else packer.pack(content) if content else None
    owner = labels.get(LABEL_DEPLOYMENT) or labels.get(LABEL_TASK_OF)
    if not owner and controller.get("kind") == "LargeModelDeployment":
        owner = controller.get("name")
    return Record(
        kind=kind,
        namespace=intern(metadata["namespace"]),
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        version=version_number(metadata.get("resourceVersion", "")),
        created=intern(metadata.get("creationTimestamp") or ""),
        owner=intern(owner or ""),
        controller=intern(f"{controller['kind']} {controller['name']}") if controller else "",
        owner_uid=intern(controller.get("uid", "")),
        revision=intern(labels.get(LABEL_REVISION, "")),
        is_going=bool(metadata.get("deletionTimestamp")),
        digest=digest,
        content=packed,
        state=_state(kind, document),
    )


def owned_fields(document: Document) -> Document:
    """Return what a manifest can set of an object: no status, no bookkeeping of Kubernetes, which is no change of anybody's."""
    metadata = document.get("metadata", {})
    kept = {key: metadata[key] for key in ("labels", "annotations", "ownerReferences") if metadata.get(key)}
    if _ROLLOUT in kept.get("annotations", {}):
        kept["annotations"] = {key: value for key, value in kept["annotations"].items() if key != _ROLLOUT}
    return {"metadata": kept, **{key: value for key, value in document.items() if key not in ("apiVersion", "kind", "metadata", "status")}}


def version_number(text: str) -> int:
    """Return a resource version as a number: they are comparable since Kubernetes 1.35 (KEP-5504), and were before in fact."""
    return int(text) if text.isdecimal() else 0


_READERS: dict[Kind, Callable[[Document], State]] = {POD: pod_state, DEPLOYMENT: deployment_state, JOB: job_state}


def _state(kind: Kind, document: Document) -> State | None:
    read = _READERS.get(kind)
    return None if read is None else read(document)
