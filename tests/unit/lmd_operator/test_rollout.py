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


def deployment(surge: int | str = 1, failure: str = "") -> DeploymentState:
    conditions = [{"type": "ReplicaFailure", "status": "True", "message": failure}] if failure else []
    spec = {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 1}}}
    return deployment_state({"metadata": {"generation": 1}, "spec": spec, "status": {"conditions": conditions}})


def pod(revision: str, unscheduled: str = "", **more: Any) -> PodState:
    scheduled = {"type": "PodScheduled", "status": "False" if unscheduled else "True", "message": unscheduled}
    labels = {"largemodel.dev/revision": revision}
    document = {"metadata": {"name": "p", "labels": labels}, "status": {"conditions": [scheduled]}}
    return replace(pod_state(document), **more)


OLD = pod("old")
RUNNING = Status(replicas=2, revision=Revisions(updated="old"))


@pytest.mark.parametrize(
    ("state", "pods", "expected"),
    [
        pytest.param(deployment(), [OLD, pod("new", FULL)], True, id="no devices are left"),
        pytest.param(deployment(failure=QUOTA), [OLD], True, id="the quota is used up"),
        pytest.param(deployment(), [OLD, pod("new")], False, id="the new one has found a place"),
        pytest.param(deployment(), [OLD, pod("new", NO_SUCH_NODE)], False, id="no old one could make such a place"),
        pytest.param(deployment(failure="denied by a webhook"), [OLD], False, id="no old one could make it be admitted"),
        pytest.param(deployment(), [pod("new", FULL)], False, id="nobody is there to make place"),
        pytest.param(deployment(), [pod("old", is_ended=True), pod("new", FULL)], False, id="who ended holds nothing"),
        pytest.param(deployment(), [pod("old", job="fill"), pod("new", FULL)], False, id="the pod of a Job is no replica"),
        pytest.param(deployment(), [OLD, pod("new", FULL, is_going=True)], False, id="who goes needs no place"),
        pytest.param(deployment(surge=0), [OLD, pod("new")], True, id="begun one by one, it goes on so"),
        pytest.param(deployment(surge="0%"), [pod("old", is_going=True), pod("new")], True, id="until the last old one is gone"),
        pytest.param(deployment(surge=0), [pod("new"), pod("new")], False, id="over: the next one tries to surge again"),
        pytest.param(None, [OLD, pod("new", FULL)], False, id="nothing is there yet"),
    ],
)
def test_old_replicas_make_place_only_where_that_helps(state: DeploymentState | None, pods: list[PodState], expected: bool) -> None:
    assert replaces_one_by_one(owner(), state, pods, "new") is expected


@pytest.mark.parametrize("rollout", ["RollingUpdate", "Recreate"])
def test_what_was_asked_for_is_not_changed(rollout: str) -> None:
    assert not replaces_one_by_one(owner(rollout), deployment(), [OLD, pod("new", FULL)], "new")
    assert beginning(owner(rollout), RUNNING, "new") == []


def test_the_deployment_says_which() -> None:
    ways = [strategy(owner(), is_tight=is_tight).rolling_update for is_tight in (False, True)]
    assert [(way.max_surge, way.max_unavailable) for way in ways if way is not None] == [(1, 0), (0, 1)]


def test_events_say_which_and_why_once() -> None:
    pods = [OLD, pod("new", FULL)]
    (begun,) = beginning(owner(), RUNNING, "new")
    assert begun.note == "Revision new starts one replica beside those that run. If there is no room for it, they are replaced one by one."
    assert beginning(owner(), RUNNING, "old") == [], "the same one"
    assert beginning(owner(), RUNNING.model_copy(update={"replicas": 0}), "new") == [], "nothing is replaced"
    (turned,) = turning(deployment(), pods, "new", is_one_by_one=True)
    assert turned.note == (
        "There is no room for one more replica of revision new (2 Insufficient nvidia.com/gpu), so old replicas end one by one "
        "to make place for the new ones."
    )
    assert turning(deployment(surge=0), pods, "new", is_one_by_one=True) == [], "said before"
    assert turning(deployment(), pods, "new", is_one_by_one=False) == []
    (full,) = turning(deployment(failure=QUOTA), [OLD], "new", is_one_by_one=True)
    assert "(exceeded quota: gpus)" in full.note
