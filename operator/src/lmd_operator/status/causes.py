"""Why replicas do not answer, read from their pods. Each cause is a reason for machines and one sentence with the remedy.

A pod has the first cause that fits it; of all pods' causes the most telling one is told, in the order of `ORDER`: what a
human must act on comes before what passes by itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lmd_operator.observed import PodState, Progress
from lmd_operator.status import weights
from lmd_operator.status.observation import Observed
from lmd_operator.status.refusals import clause, refusal

ORDER = (
    "ImagePull",
    "ContainerRefused",
    "Unschedulable",
    "OutOfMemory",
    "DeviceOutOfMemory",
    "SharedMemoryTooSmall",
    "PortInUse",
    "StartupTimeout",
    "CrashLooping",
    *weights.FAILURES,
    "QuotaExceeded",
    "Forbidden",
    "ImageVolumesMissing",
    "ChildInvalid",
    "ForeignObject",
    "ChildRefused",
    "RanksLost",
    "ProbeFailing",
    weights.FETCHING,
    "ModelLoading",
    "PodsPending",
    "Terminating",
)
PASSING = frozenset({weights.FETCHING, "ModelLoading", "PodsPending", "Terminating", "Progressing", "RollingOut", "Creating", "Inspecting"})
"""Reasons of an ordinary start, roll-out or end: nobody has to do anything."""

_IMAGE_PULL = frozenset({"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"})
_CONTAINER_REFUSED = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError"})
_CRASH_LOOP = "CrashLoopBackOff"
_KILLED = 137
_MANY_RESTARTS = 2
_LAST_WORDS_LENGTH = 600
_EXIT_CODES = {
    0: "it ended by itself",
    1: "it refused to start",
    70: "a rank could not load the model",
    71: "the engine of a rank failed",
    126: "the image's lmd-worker cannot be executed",
    127: "the image has no lmd-worker",
    134: "it aborted",
    _KILLED: "it was killed",
    139: "it crashed on a memory access",
    143: "it was ended after a rank had died or stopped answering",
}
"""Process 1 is the JVM; 70 and 71 are those of ranks (`lmd_worker.watch`), which end it by the liveness probe (143)."""
FAULTS = ("DegreeMismatch", "NotSharded", "RankMissing", "SharedDevice")
"""How ranks can differ from what is planned; a worker that finds it before it is ready begins its last words so."""
_FAULT = re.compile(rf"({'|'.join(FAULTS)}): (.+)")
_NOT_LOADED = re.compile(r"StartupTimeout: (.+)")
"""The last words of a worker that was ended before its model was loaded."""
_MORE_MEMORY = "raise spec.template.resources.limits.memory, or lower spec.engine.concurrency"
_SCARCE = (
    (
        re.compile(r"\b(CUDA|HIP)( error:)? out of memory|CUBLAS_STATUS_ALLOC_FAILED"),
        "DeviceOutOfMemory",
        "a device ran out of memory",
        "lower spec.engine.contextTokens or spec.engine.concurrency, or cut the model over more devices (`lmd plan` has the sum)",
    ),
    (
        re.compile(r"/dev/shm|shared memory|for file </torch_|to file </torch_"),
        "SharedMemoryTooSmall",
        "the worker found too little shared memory",
        "raise spec.template.sharedMemory, which counts against the memory limit",
    ),
    (
        re.compile(r"can't allocate memory|Cannot allocate memory"),
        "OutOfMemory",
        "the worker got no more memory",
        _MORE_MEMORY,
    ),
    (
        re.compile(r"[Aa]ddress already in use"),
        "PortInUse",
        "a port that the worker needs is taken",
        "let spec.handler and what else runs in the pod listen on other ports",
    ),
)
"""What last words of torch, NCCL and the system mean: reason, what it is and what to do."""
_ROUTINE = re.compile(r"\b(TRACE|DEBUG|INFO)\b")
_SCHEDULING = (
    ("persistentvolumeclaim", "create or repair the claim that spec.model.source or spec.model.cache names"),
    ("insufficient", "free or add that resource, or ask for less by spec.replicas, spec.parallelism.tensor or spec.template.resources"),
    ("taint", "add the toleration to spec.template.tolerations, or free an untainted node"),
    ("affinity", "correct spec.template.nodeSelector or spec.template.affinity, or label a node"),
)
"""What to do about what the scheduler says; the first phrase that fits wins."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something does not go on: a CamelCase reason and one sentence."""

    reason: str
    message: str


def most_telling(observed: Observed, asked: int) -> Cause | None:
    """Return the cause most worth telling, with how many replicas have it; None when the pods show nothing."""
    found: dict[str, list[str]] = {}
    pods = observed.live()
    for pod in pods:
        cause = of_pod(pod, observed.progress.get(pod.name))
        if cause is not None:
            found.setdefault(cause.reason, []).append(cause.message)
    missing = asked - len(pods)
    deployment = observed.deployment
    if deployment is not None and deployment.failure and (missing > 0 or deployment.updated < asked):
        reason, sentence = refusal(deployment.failure)
        found.setdefault(reason, []).extend([f"the pod is refused: {sentence}"] * max(missing, 1))
    elif missing > 0 and observed.ending():
        found["Terminating"] = ["it starts once an old replica has ended and freed its devices"] * missing
    if not found:
        return None
    reason = min(found, key=ORDER.index)
    return Cause(reason, f"{len(found[reason])} of {counted(max(asked, len(pods)))}: {found[reason][0]}.")


def of_pods(pods: Sequence[PodState]) -> Cause | None:
    """Return the most telling cause of these pods alone."""
    return most_telling(Observed(None, tuple(pods), (), ()), 0)


def of_pod(pod: PodState, progress: Progress | None = None) -> Cause | None:
    """Return why a pod does not answer, without its full stop, or None when it does."""
    if pod.is_ready:
        return None
    if pod.is_going:
        return Cause("Terminating", "it finishes its answers and ends")
    if pod.fetch is not None and not pod.fetch.is_done:
        pod = replace(pod, waiting=pod.fetch.waiting, waiting_message=pod.fetch.waiting_message)
    if pod.waiting in _IMAGE_PULL:
        return Cause("ImagePull", _image_pull(pod))
    if pod.waiting in _CONTAINER_REFUSED:
        said = clause(pod.waiting_message or pod.waiting)
        return Cause("ContainerRefused", f"the container cannot be made ({said}); create what it names, or correct spec.template")
    if not pod.is_scheduled:
        return _unscheduled(pod)
    if pod.fetch is not None and not pod.fetch.is_done and not pod.is_running:
        told = weights.of_fetch(pod.name, pod.fetch, progress)
        if told is not None:
            return Cause(*told)
    ended = bool(pod.last_reason) or pod.waiting == _CRASH_LOOP
    if ended and not (pod.has_started and pod.is_running):
        return _ended(pod)
    if pod.is_running and pod.has_started:
        return Cause("ProbeFailing", f"the model was loaded and does not answer now; if this lasts, read `kubectl logs {pod.name}`")
    if pod.is_running:
        return Cause(
            "ModelLoading", "the model is being loaded; raise spec.engine.torchServe.startupTimeoutSeconds if the limit is too short"
        )
    said = f" ({clause(': '.join(filter(None, [pod.waiting, pod.waiting_message])))})" if pod.waiting else ""
    return Cause(
        "PodsPending", f"volumes, image and container are being made ready{said}; if this lasts, `kubectl describe pod {pod.name}`"
    )


def fault_of(pod: PodState) -> Cause | None:
    """Return how the ranks of a replica differed from what is planned when it ended, until it has loaded again; else None."""
    if pod.is_ready or (pod.is_running and pod.has_started):
        return None
    found = _FAULT.match(_last_line(pod))
    return Cause(found[1], clause(found[2], _LAST_WORDS_LENGTH)) if found else None


def counted(replicas: int) -> str:
    """Return a number of replicas in words."""
    return f"{replicas} replica" if replicas == 1 else f"{replicas} replicas"


def _image_pull(pod: PodState) -> str:
    said = clause(": ".join(filter(None, [pod.waiting, pod.waiting_message])))
    if pod.waiting == "InvalidImageName":
        return f"the worker image has no valid name ({said}); correct spec.template.image"
    if pod.waiting == "ErrImageNeverPull":
        return f"the worker image is not on the node and may not be pulled ({said}); load it there, or set another spec.template.image"
    return f"the worker image cannot be pulled ({said}); correct spec.template.image, or give credentials in spec.template.imagePullSecrets"


def _unscheduled(pod: PodState) -> Cause:
    said = clause(pod.scheduling_message)
    if not said:
        return Cause("PodsPending", "the pod waits for the scheduler; if this lasts, look whether one runs")
    lowered = said.lower()
    general = "add a node that fits, or ask for less in spec.template and spec.parallelism"
    remedy = next((remedy for phrase, remedy in _SCHEDULING if phrase in lowered), general)
    return Cause("Unschedulable", f"no node takes the pod ({said}); {remedy}")


def _ended(pod: PodState) -> Cause:
    """Return why the worker's container ended; the same whether it waits, starts again or has just ended."""
    if (found := _NOT_LOADED.match(_last_line(pod))) is not None:
        remedy = "raise spec.engine.torchServe.startupTimeoutSeconds, or put the weights on a faster volume"
        return Cause("StartupTimeout", f"{clause(found[1], _LAST_WORDS_LENGTH)}, and it is started again; {remedy}")
    words = _last_words(pod)
    for pattern, reason, what, remedy in _SCARCE:
        if pattern.search(_last_line(pod)):
            return Cause(reason, f"{what} (last words: {words}); {remedy}")
    if pod.last_reason == "OOMKilled" or (pod.last_exit_code == _KILLED and not words):
        # 137 alone is any SIGKILL, also that of a liveness probe; the worker leaves words in that case, the kernel never does
        doubt = "" if pod.last_reason == "OOMKilled" else " (exit code 137), most often for lack of memory"
        what = f"the worker was killed{doubt}" if doubt else "the worker was killed for lack of memory"
        return Cause("OutOfMemory", f"{what}; {_MORE_MEMORY}")
    meaning = _EXIT_CODES.get(pod.last_exit_code, "it failed")
    why = f"its last words: {words}" if words else f"{meaning} (exit code {pod.last_exit_code}); read `kubectl logs {pod.name} --previous`"
    if pod.waiting != _CRASH_LOOP and pod.is_running and pod.restarts < _MANY_RESTARTS:
        return Cause("RanksLost", f"the worker ended and loads the model again; {why}")
    return Cause("CrashLooping", f"the worker {'keeps ending' if pod.restarts >= _MANY_RESTARTS else 'ended'}; {why}")


def _last_words(pod: PodState) -> str:
    """Return what the worker wrote as its cause of death; of a log's tail, which Kubernetes gives otherwise, the last line of a fault."""
    line = _last_line(pod)
    found = _FAULT.match(line)
    return clause(found[2] if found else line, _LAST_WORDS_LENGTH) if line else ""


def _last_line(pod: PodState) -> str:
    lines = [line for line in pod.last_message.splitlines() if line.strip() and not _ROUTINE.search(line)]
    return lines[-1].strip() if lines else ""
