"""Why replicas, or the plan of them, wait for a Job: read from the Job and its pod."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lmd_operator.observed import PodState, Progress, TaskState
from lmd_operator.status.causes import Cause, of_pod
from lmd_operator.status.refusals import clause
from lmd_operator.status.weights import FAILED, FAILURES

INSPECTING = "Inspecting"
STUCK_RESTARTS = 5
"""After as many failed tries, some five minutes, somebody should look; it is tried on."""


def of_fill(fill: TaskState, progress: Mapping[str, Progress]) -> Cause | None:
    """Return why the cache is not filled yet, or None when it is."""
    if fill.is_complete:
        return None
    cause = _of_job(fill, progress)
    return Cause(cause.reason, f"Replicas start when the cache is filled: {cause.message}.")


def of_inspection(task: TaskState) -> Cause:
    """Return why the model is not known yet."""
    pods = _live(task)
    fetch = pods[0].fetch if pods else None
    reason, _, sentence = fetch.message.partition(": ") if fetch is not None else ("", "", "")
    if fetch is not None and reason in FAILURES and not fetch.is_done:
        return Cause(reason, f"The model cannot be inspected: {clause(sentence, 800)}.")
    if fetch is not None and fetch.is_running:
        return Cause(INSPECTING, f"Job {task.name} reads its configuration and headers.")
    cause = _of_job(task, {})
    return Cause(cause.reason, f"{cause.message[:1].upper()}{cause.message[1:]}.")


def is_stuck(fill: TaskState, progress: Mapping[str, Progress]) -> bool:
    """Return whether only a person can move it: it was given up, or fails again and again for a reason that does not pass."""
    if fill.state is not None and fill.state.is_finished:
        return not fill.is_complete
    return any(_fails_again_and_again(pod, progress.get(pod.name)) for pod in _live(fill))


def _of_job(task: TaskState, progress: Mapping[str, Progress]) -> Cause:
    if task.state is not None and task.state.failure:
        said = clause(task.state.failure, 300)
        return Cause(FAILED, f"Job {task.name} was given up ({said}); put right what it says and delete it, and it is made anew")
    pods = _live(task)
    if not pods:
        return Cause("PodsPending", f"Job {task.name} is being started; if this lasts, `kubectl describe job {task.name}`")
    pod = pods[0]
    if pod.fetch is not None and pod.fetch.is_done:
        return Cause("PodsPending", f"Job {task.name} has done its work and ends")
    told = progress.get(pod.name)
    if pod.fetch is not None and _fails_again_and_again(pod, told):  # while it is tried again nothing new is known
        told, pod = None, _at_rest(pod)
    return of_pod(pod, told) or Cause("PodsPending", f"Job {task.name} is being started")


def _live(task: TaskState) -> list[PodState]:
    return sorted((pod for pod in task.pods if not (pod.is_going or pod.is_ended)), key=lambda pod: pod.name)


def _fails_again_and_again(pod: PodState, progress: Progress | None) -> bool:
    fetch = pod.fetch
    if fetch is None or fetch.restarts < STUCK_RESTARTS or (progress is not None and progress.total):
        return False
    return fetch.message.partition(": ")[0] in FAILURES


def _at_rest(pod: PodState) -> PodState:
    return pod if pod.fetch is None else replace(pod, fetch=replace(pod.fetch, is_running=False))
