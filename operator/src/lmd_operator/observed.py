"""What we know about children that run: the parts of their status a user is told about. Pure, typed, small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from lmd_operator.names import CONTAINER, FETCH_CONTAINER, FRONT_DOOR, LABEL_REVISION

MESSAGE_LIMIT = 1024
LAST_WORDS_LIMIT = 4096
"""Kubernetes' own; what a Job says of a model needs most of it, and half of it would say nothing."""
_INITIALIZING = "PodInitializing"
_JOB_NAME = "batch.kubernetes.io/job-name"
"""Set by Kubernetes on the pods of Jobs."""


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """`.status` of a Deployment, with the message of a failed ReplicaSet (quota, admission) if there is one.

    `is_one_by_one` is that of its spec: no pod is started beside the old ones.
    """

    generation: int
    observed_generation: int
    replicas: int
    ready: int
    updated: int
    available: int
    is_stuck: bool
    failure: str
    is_one_by_one: bool = False


@dataclass(frozen=True, slots=True)
class JobState:
    """`.status` of a Job. `failure` says why it was given up, empty while it was not; a Job that waits is suspended."""

    is_complete: bool
    is_suspended: bool
    failure: str

    @property
    def is_finished(self) -> bool:
        """Whether it will not run any more."""
        return self.is_complete or bool(self.failure)


@dataclass(frozen=True, slots=True)
class FetchState:
    """The init container that brings the weights, or the one container of a Job's pod.

    `message` is its last words: what it brought as JSON, or a reason, a colon and a sentence. `exit_code` is of its last end.
    """

    is_running: bool
    is_done: bool
    waiting: str
    waiting_message: str
    exit_code: int
    restarts: int
    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fetch is, as the pod itself tells; `remaining_seconds` is None while nothing moves."""

    state: str
    bytes: int
    total: int
    bytes_per_second: int
    remaining_seconds: int | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether ranks run what is planned, with the reason in one word and in a sentence; `load_seconds` is what the slowest one took."""

    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    load_seconds: int = 0


@dataclass(frozen=True, slots=True)
class PodState:
    """One pod of a replica.

    `is_ended` is one whose containers all ended for good: evicted, or of a node that shut down. It stays listed until it
    is cleared away, holds no devices, and its Deployment has replaced it.
    `waiting` is the reason its worker waits for (ImagePullBackOff, CrashLoopBackOff, ...) with its message;
    `last_*` is how the worker ended the last time: reason, exit code and its own last words. `fetch` is None for a pod that
    brings no weights; `address` is the pod's own. `job` is the name of the Job that a pod is of; such a pod is never ready.
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
    address: str = ""
    fetch: FetchState | None = None
    job: str = ""


@dataclass(frozen=True, slots=True)
class TaskState:
    """A Job of an object, None until it is there, and its pods."""

    name: str
    state: JobState | None
    pods: tuple[PodState, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether it has done its work."""
        return self.state is not None and self.state.is_complete


def progress(document: object) -> Progress | None:
    """Read what a pod answers; None for anything that is not that, as anybody may have written it."""
    if not isinstance(document, Mapping):
        return None
    state, remaining = document.get("state"), document.get("remaining_seconds")
    there, total, speed = (document.get(name) for name in ("bytes", "total", "bytes_per_second"))
    if not isinstance(state, str) or not (_is_count(there) and _is_count(total) and _is_count(speed)):
        return None
    return Progress(state[:80], there, total, speed, remaining if _is_count(remaining) else None)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**60


def deployment_state(document: Mapping[str, Any]) -> DeploymentState:
    """Read a Deployment as the API server sends it."""
    status, spec = document.get("status") or {}, document.get("spec") or {}
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
        is_one_by_one=((spec.get("strategy") or {}).get("rollingUpdate") or {}).get("maxSurge") in (0, "0%"),
    )


def job_state(document: Mapping[str, Any]) -> JobState:
    """Read a Job as the API server sends it."""
    status = document.get("status") or {}
    true = {entry["type"]: entry for entry in status.get("conditions") or [] if entry.get("status") == "True"}
    failed = true.get("Failed")
    words = "" if failed is None else failed.get("message") or failed.get("reason") or "it has failed"
    return JobState("Complete" in true, bool((document.get("spec") or {}).get("suspend")), words[:MESSAGE_LIMIT])


def pod_state(document: Mapping[str, Any]) -> PodState:
    """Read a pod as the API server sends it."""
    status = document.get("status") or {}
    metadata = document["metadata"]
    conditions = {entry["type"]: entry for entry in status.get("conditions") or []}
    scheduled = conditions.get("PodScheduled", {})
    job = (metadata.get("labels") or {}).get(_JOB_NAME, "")
    worker: Mapping[str, Any] = next((entry for entry in status.get("containerStatuses") or [] if entry.get("name") == CONTAINER), {})
    waiting = _waiting(status, worker)
    ended = (worker.get("state") or {}).get("terminated") or (worker.get("lastState") or {}).get("terminated") or {}
    return PodState(
        name=metadata["name"],
        revision=(metadata.get("labels") or {}).get(LABEL_REVISION, ""),
        is_going=bool(metadata.get("deletionTimestamp")),
        is_ended=status.get("phase") in ("Failed", "Succeeded"),
        is_ready=conditions.get("Ready", {}).get("status") == "True" and not job,
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
        address=status.get("podIP", ""),
        fetch=_fetch_state(next(iter(status.get("containerStatuses") or []), None) if job else _init_fetch(status)),
        job=job,
    )


def _init_fetch(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((entry for entry in status.get("initContainerStatuses") or [] if entry.get("name") == FETCH_CONTAINER), None)


def _fetch_state(found: Mapping[str, Any] | None) -> FetchState | None:
    if found is None:
        return None
    state = found.get("state") or {}
    ended = state.get("terminated") or (found.get("lastState") or {}).get("terminated") or {}
    waiting = state.get("waiting") or {}
    return FetchState(
        is_running="running" in state,
        is_done="terminated" in state and state["terminated"].get("exitCode") == 0,
        waiting=waiting.get("reason", ""),
        waiting_message=waiting.get("message", "")[:MESSAGE_LIMIT],
        exit_code=ended.get("exitCode", 0),
        restarts=found.get("restartCount", 0),
        message=ended.get("message", "").strip()[-LAST_WORDS_LIMIT:],
    )


def _waiting(status: Mapping[str, Any], worker: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the worker waits for; while that is the front door, which starts first, what the front door waits for."""
    waiting: Mapping[str, Any] = (worker.get("state") or {}).get("waiting") or {}
    if waiting.get("reason") != _INITIALIZING:
        return waiting
    statuses = status.get("initContainerStatuses") or []
    front_door: Mapping[str, Any] = next((entry for entry in statuses if entry.get("name") == FRONT_DOOR), {})
    return (front_door.get("state") or {}).get("waiting") or waiting
