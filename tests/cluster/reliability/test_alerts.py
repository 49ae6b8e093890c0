"""The chart's alerts over scrapes of a real operator: true while what they warn of lasts, and silent in health.

How long a fault must last (`for`) is Prometheus' business. LMDOperatorReconcilesSlow needs ten minutes of slow requests and
LMDOperatorQueueStuck two minutes of a full queue; their expressions are tested over samples made for them.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lmd_plane.alerts import Scrape, firing, scraped
from lmd_plane.client import eventually
from lmd_plane.faults import FaultProxy, Match, Reply
from lmd_plane.objects import Objects
from lmd_plane.operators import Operator

pytestmark = pytest.mark.reliability
ALERTS = Path(__file__).parents[3] / "charts" / "lmd-operator" / "files" / "alerts.yaml"
RULES: dict[str, str] = {rule["alert"]: rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}
HISTOGRAMS = {"LMDOperatorReconcilesSlow"}
"""Rules of a quantile, which is Prometheus' own arithmetic."""
REFUSED: dict[str, Any] = {"engine": {"deepspeed": {"replaceWithKernelInject": True}}}
NEVER_READY: dict[str, Any] = {"template": {"metadata": {"annotations": {"sim.largemodel.dev/never-ready": "true"}}}}


def _scrape(operator: Operator) -> Scrape:
    return scraped(operator.scrape("metrics"), namespace="system", pod=operator.name)


def _firing(operator: Operator, before: Scrape | None = None) -> set[str]:
    now = _scrape(operator)
    return {alert for alert, expression in RULES.items() if alert not in HISTOGRAMS and firing(expression, now, before)}


def test_health_is_silent_and_every_metric_of_a_rule_is_there(operator: Operator, objects: Objects) -> None:
    objects.create("small")
    objects.wait_settled("small")
    before = _scrape(operator)
    named = set(re.findall(r"\blmd_operator_\w+", " ".join(RULES.values())))
    assert named <= set(before)
    objects.change("small", {"replicas": 2})
    objects.wait_settled("small")
    eventually(lambda: not _firing(operator, before), "silence")  # a busy machine may hold up the event loop for a moment


def test_a_refused_spec_and_a_stalled_object_have_an_alert_each(operator: Operator, objects: Objects) -> None:
    objects.create("refused", REFUSED)
    eventually(lambda: "LargeModelDeploymentRefused" in _firing(operator), "alert of the refusal")
    assert "LargeModelDeploymentStalled" not in _firing(operator)
    theirs = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "stalled"}, "spec": {"ports": [{"port": 1}]}}
    objects.api.create(objects.path("Service"), theirs)
    objects.create("stalled")
    eventually(lambda: "LargeModelDeploymentStalled" in _firing(operator), "alert of the standstill")
    objects.delete("refused")
    eventually(lambda: "LargeModelDeploymentRefused" not in _firing(operator), "end of the refusal")


def test_replicas_that_never_answer_have_their_alerts(operator: Operator, objects: Objects) -> None:
    objects.create("small", NEVER_READY)
    expected = {"LargeModelDeploymentNotReady", "LargeModelDeploymentDown"}
    eventually(lambda: _firing(operator) == expected, "alerts of a model that is down")
    objects.change("small", {"suspend": True})
    eventually(lambda: not _firing(operator), "silence once nothing is meant to run")


def test_no_leader_is_told_by_a_standby(make_operator: Callable[..., Operator], objects: Objects) -> None:
    operator = make_operator()
    lease = {"holderIdentity": "nobody", "leaseDurationSeconds": 3600}
    document = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "lmd-operator"}, "spec": lease}
    objects.api.create(objects.path("Lease"), document)
    operator.start()
    eventually(lambda: _firing(operator) == {"LMDOperatorHasNoLeader"}, "alert of the missing leader")
    objects.api.delete(objects.path("Lease", "lmd-operator"))
    operator.wait_leading()
    eventually(lambda: not _firing(operator), "silence")


@pytest.mark.parametrize(("code", "alert"), [(403, "LMDOperatorForbidden"), (500, "LMDOperatorRequestsFail")])
def test_refused_requests_have_their_alerts(faulty: Operator, faults: FaultProxy, objects: Objects, code: int, alert: str) -> None:
    faulty.start()
    faulty.wait_leading()
    rule = faults.add(Match(verb="write", resource="services"), Reply(code))
    objects.create("small")
    eventually(lambda: rule.fired > 0, "first refusal")
    before = _scrape(faulty)
    eventually(lambda: alert in _firing(faulty, before), f"alert of code {code}")
    faults.clear()
    objects.wait_settled("small")
    healed = _scrape(faulty)
    objects.change("small", {"replicas": 2})
    objects.wait_settled("small")
    assert alert not in _firing(faulty, healed)


def test_an_event_loop_that_stands_still_has_its_alert(operator: Operator) -> None:
    with operator.paused():
        time.sleep(3)
    eventually(lambda: "LMDOperatorOverloaded" in _firing(operator), "alert of the event loop", seconds=5)
    eventually(lambda: "LMDOperatorOverloaded" not in _firing(operator), "end of it")


@pytest.mark.skipif(os.environ.get("LMD_LONG") != "1", reason="takes three minutes of silence; LMD_LONG=1 runs it")
def test_watches_that_stay_silent_have_their_alert(faulty: Operator, faults: FaultProxy) -> None:
    faulty.start()
    faulty.wait_leading()
    faults.freeze_watches()
    faults.add(Match(verb="watch"), Reply(500))
    faults.add(Match(verb="list"), Reply(500))
    eventually(lambda: "LMDOperatorWatchSilent" in _firing(faulty), "alert of the silence", seconds=200)
    eventually(lambda: faulty.scrape("healthz") != "ok\n", "failing liveness probe", seconds=30)
    faults.clear()
    faults.cut_watches()
    eventually(lambda: faulty.scrape("healthz") == "ok\n", "recovery", seconds=60)
    assert "LMDOperatorWatchSilent" not in _firing(faulty)
