"""What is read of a pod whose worker waits for the front door."""

from __future__ import annotations

from typing import Any

import pytest

from lmd_operator.observed import pod_state

INITIALIZING = {"reason": "PodInitializing"}
PULLING = {"reason": "ImagePullBackOff", "message": "no such image"}


def a_pod(worker: dict[str, Any], front_door: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"name": "pod"},
        "status": {
            "containerStatuses": [{"name": "worker", "state": worker}],
            "initContainerStatuses": [
                {"name": "fetch", "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
                {"name": "front-door", "state": front_door},
            ],
        },
    }


@pytest.mark.parametrize(
    ("worker", "front_door", "told"),
    [
        pytest.param({"waiting": INITIALIZING}, {"waiting": PULLING}, PULLING, id="the front door's image is missing"),
        pytest.param({"waiting": INITIALIZING}, {"running": {}}, INITIALIZING, id="the front door starts"),
        pytest.param({"waiting": PULLING}, {"waiting": {"reason": "CrashLoopBackOff"}}, PULLING, id="the worker has a reason of its own"),
        pytest.param({"running": {}}, {"waiting": {"reason": "CrashLoopBackOff"}}, {}, id="the worker runs"),
    ],
)
def test_a_worker_that_waits_for_the_front_door_waits_for_what_that_waits_for(
    worker: dict[str, Any], front_door: dict[str, Any], told: dict[str, str]
) -> None:
    state = pod_state(a_pod(worker, front_door))
    assert (state.waiting, state.waiting_message) == (told.get("reason", ""), told.get("message", ""))


def test_a_pod_that_nobody_has_seen_waits_for_nothing() -> None:
    assert pod_state({"metadata": {"name": "pod"}}).waiting == ""
