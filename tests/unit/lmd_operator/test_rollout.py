"""Whether a roll-out surges or replaces one by one, by what the scheduler and the quota say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lmd_operator.api.status import Revisions, Status
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.observed import DeploymentState, PodState, deployment_state, pod_state
from lmd_operator.resources.deployment import strategy
from lmd_operator.rollout import beginning, replaces_one_by_one, turning

FULL = "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available."
NO_SUCH_NODE = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
QUOTA = 'pods "m-1" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=8, used: 16, limited: 16'


def owner(rollout: str = "Auto") -> LargeModelDeployment:
    spec = {"model": {"source": {"path": {"path": "/m"}}}, "rollout": {"strategy": rollout}}
    document = {"apiVersion": "largemodel.dev/v1alpha1", "kind": "LargeModelDeployment", "metadata": {"name": "m"}, "spec": spec}
    return LargeModelDeployment.model_validate(document)


def deployment(surge: int | str = 1, failure: str = "", old: int = 2) -> DeploymentState:
    conditions = [{"type": "ReplicaFailure", "status": "True", "message": failure}] if failure else []
    spec = {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 1}}}
    status = {"replicas": old + 1, "updatedReplicas": 1, "conditions": conditions}
    return deployment_state({"metadata": {"generation": 1}, "spec": spec, "status": status})


def pod(unscheduled: str = "", **more: Any) -> PodState:
    scheduled = {"type": "PodScheduled", "status": "False" if unscheduled else "True", "message": unscheduled}
    return replace(pod_state({"metadata": {"name": "p"}, "status": {"conditions": [scheduled]}}), **more)


RUNNING = Status(replicas=2, revision=Revisions(updated="old"))


@pytest.mark.parametrize(
    ("state", "pods", "expected"),
    [
        pytest.param(deployment(), [pod(), pod(FULL)], True, id="no devices are left"),
        pytest.param(deployment(failure=QUOTA), [pod()], True, id="the quota is used up"),
        pytest.param(deployment(), [pod(), pod()], False, id="the new one has found a place"),
        pytest.param(deployment(), [pod(), pod(NO_SUCH_NODE)], False, id="no old one could make such a place"),
        pytest.param(deployment(failure="denied by a webhook"), [pod()], False, id="no old one could make it be admitted"),
        pytest.param(deployment(old=0), [pod(FULL)], False, id="nobody is there to make place"),
        pytest.param(deployment(), [pod(FULL, is_ended=True), pod()], False, id="who ended needs no place"),
        pytest.param(deployment(), [pod(FULL, job="fill"), pod()], False, id="the pod of a Job is no replica"),
        pytest.param(deployment(), [pod(), pod(FULL, is_going=True)], False, id="who goes needs no place"),
        pytest.param(deployment(surge=0), [pod(), pod()], True, id="begun one by one, it goes on so"),
        pytest.param(deployment(surge="0%"), [pod(), pod()], True, id="in percent too"),
        pytest.param(deployment(surge=0, old=0), [pod(), pod()], False, id="over: the next one tries to surge again"),
        pytest.param(None, [pod(), pod(FULL)], False, id="nothing is there yet"),
    ],
)
def test_old_replicas_make_place_only_where_that_helps(state: DeploymentState | None, pods: list[PodState], expected: bool) -> None:
    assert replaces_one_by_one(owner(), state, pods) is expected


@pytest.mark.parametrize("rollout", ["RollingUpdate", "Recreate"])
def test_what_was_asked_for_is_not_changed(rollout: str) -> None:
    assert not replaces_one_by_one(owner(rollout), deployment(), [pod(), pod(FULL)])
    assert beginning(owner(rollout), RUNNING, "new") == []


def test_the_deployment_says_which() -> None:
    ways = [strategy(owner(), is_tight=is_tight).rolling_update for is_tight in (False, True)]
    assert [(way.max_surge, way.max_unavailable) for way in ways if way is not None] == [(1, 0), (0, 1)]


def test_events_say_which_and_why_once() -> None:
    pods = [pod(), pod(FULL)]
    (begun,) = beginning(owner(), RUNNING, "new")
    assert begun.note == "Revision new starts one replica beside those that run. If there is no room for it, they are replaced one by one."
    assert beginning(owner(), RUNNING, "old") == [], "the same one"
    assert beginning(owner(), RUNNING.model_copy(update={"replicas": 0}), "new") == [], "nothing is replaced"
    (turned,) = turning(deployment(), pods, is_one_by_one=True)
    assert turned.note == (
        "There is no room for one more replica (2 Insufficient nvidia.com/gpu), so old replicas end one by one to make place "
        "for the new ones."
    )
    assert turning(deployment(surge=0), pods, is_one_by_one=True) == [], "said before"
    assert turning(deployment(), pods, is_one_by_one=False) == []
    (full,) = turning(deployment(failure=QUOTA), [pod()], is_one_by_one=True)
    assert "(exceeded quota: gpus)" in full.note
