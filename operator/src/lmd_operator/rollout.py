"""How replicas are replaced under `rollout.strategy: Auto`: by one more beside them, or one by one where there is no room for it.

Whether there is room nobody knows but the scheduler and the quota: devices, taints, affinity and other tenants' pods all count. So one
more is tried first. When it cannot be placed because something is used up, the old replicas make place for the new ones until none is
left. Pure: the Deployment itself, as it is in the cluster, remembers which of the two is under way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lmd_operator.api.status import Status
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.observed import DeploymentState, PodState
from lmd_operator.transitions import Told

_USED_UP = re.compile(r"\d* ?Insufficient [^\s,;]+|exceeded quota: [^\s,]+")
"""What the scheduler and the quota's admission say; anything else, like a selector that fits no node, would not be better without an
old replica."""
_ACTION = "Roll"


def replaces_one_by_one(owner: LargeModelDeployment, state: DeploymentState | None, pods: Sequence[PodState]) -> bool:
    """Return whether old replicas make place for new ones, given what runs.

    Old are pods of another template, whatever has changed: a restart or another image leaves the revision as it is.
    """
    if owner.spec.rollout.strategy != "Auto" or state is None or state.replicas <= state.updated:
        return False
    return state.is_one_by_one or bool(no_room(state, pods))


def no_room(state: DeploymentState, pods: Sequence[PodState]) -> str:
    """Return what is used up, in the scheduler's or the quota's words; nothing while every replica finds a place."""
    waiting = (pod.scheduling_message for pod in pods if not (pod.is_scheduled or pod.is_going or pod.is_ended or pod.job))
    for message in (*waiting, state.failure):
        if found := _USED_UP.findall(message):
            return ", ".join(each.strip(" .") for each in found)
    return ""


def beginning(owner: LargeModelDeployment, previous: Status, revision: str) -> list[Told]:
    """Return what to tell when a revision begins to replace another that has replicas: that one more comes first."""
    is_replacing = previous.replicas and previous.revision.updated not in ("", revision)
    if owner.spec.rollout.strategy != "Auto" or not is_replacing:
        return []
    note = f"Revision {revision} starts one replica beside those that run. If there is no room for it, they are replaced one by one."
    return [Told("Normal", "ReplacingBySurge", _ACTION, note)]


def turning(state: DeploymentState | None, pods: Sequence[PodState], *, is_one_by_one: bool) -> list[Told]:
    """Return what to tell when a roll-out turns out to have no room."""
    if not is_one_by_one or state is None or state.is_one_by_one:
        return []
    note = f"There is no room for one more replica ({no_room(state, pods)}), so old replicas end one by one to make place for the new ones."
    return [Told("Normal", "ReplacingOneByOne", _ACTION, note)]
