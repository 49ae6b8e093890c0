"""What we know about children that run: the parts of their status a user is told about. Pure, typed, small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmd_operator.names import CONTAINER, LABEL_REVISION

MESSAGE_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """`.status` of a Deployment, with the message of a failed ReplicaSet (quota, admission) if there is one."""

    generation: int
    observed_generation: int
    replicas: int
    ready: int
    updated: int
    available: int
    is_stuck: bool
    failure: str


@dataclass(frozen=True, slots=True)
class PodState:
    """One pod of a replica.

    `is_ended` is one whose containers all ended for good: evicted, or of a node that shut down. It stays listed until it
    is cleared away, holds no devices, and its Deployment has replaced it.
    `waiting` is the reason its worker waits for (ImagePullBackOff, CrashLoopBackOff, ...) with its message;
    `last_*` is how the worker ended the last time: reason, exit code and its own last words.
    """

    name: str
    revision: str
    is_going: bool
    is_ended: bool
    is_ready: bool
    is_scheduled: bool
    scheduling_message: str
    has_started: bool
    is_running: bool
    restarts: int
    waiting: str
    waiting_message: str
    last_reason: str
    last_exit_code: int
    last_message: str


def deployment_state(document: Mapping[str, Any]) -> DeploymentState:
    """Read a Deployment as the API server sends it."""
    status = document.get("status") or {}
    conditions = {entry["type"]: entry for entry in status.get("conditions") or []}
    progressing, failure = conditions.get("Progressing", {}), conditions.get("ReplicaFailure", {})
    return DeploymentState(
        generation=document["metadata"].get("generation", 0),
        observed_generation=status.get("observedGeneration", 0),
        replicas=status.get("replicas", 0),
        ready=status.get("readyReplicas", 0),
        updated=status.get("updatedReplicas", 0),
        available=status.get("availableReplicas", 0),
        is_stuck=progressing.get("reason") == "ProgressDeadlineExceeded",
        failure=failure.get("message", "")[:MESSAGE_LIMIT] if failure.get("status") == "True" else "",
    )


def pod_state(document: Mapping[str, Any]) -> PodState:
    """Read a pod as the API server sends it."""
    status = document.get("status") or {}
    metadata = document["metadata"]
    conditions = {entry["type"]: entry for entry in status.get("conditions") or []}
    scheduled = conditions.get("PodScheduled", {})
    worker: Mapping[str, Any] = next((entry for entry in status.get("containerStatuses") or [] if entry.get("name") == CONTAINER), {})
    waiting = (worker.get("state") or {}).get("waiting") or {}
    ended = (worker.get("state") or {}).get("terminated") or (worker.get("lastState") or {}).get("terminated") or {}
    return PodState(
        name=metadata["name"],
        revision=(metadata.get("labels") or {}).get(LABEL_REVISION, ""),
        is_going=bool(metadata.get("deletionTimestamp")),
        is_ended=status.get("phase") in ("Failed", "Succeeded"),
        is_ready=conditions.get("Ready", {}).get("status") == "True",
        is_scheduled=scheduled.get("status") == "True",
        scheduling_message=scheduled.get("message", "")[:MESSAGE_LIMIT],
        has_started=bool(worker.get("started")),
        is_running="running" in (worker.get("state") or {}),
        restarts=worker.get("restartCount", 0),
        waiting=waiting.get("reason", ""),
        waiting_message=waiting.get("message", "")[:MESSAGE_LIMIT],
        last_reason=ended.get("reason", ""),
        last_exit_code=ended.get("exitCode", 0),
        last_message=ended.get("message", "").strip()[-MESSAGE_LIMIT:],
    )
