"""The rules' expressions over samples made for them, and the little evaluator that tests on a real plane use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lmd_plane.alerts import firing, scraped
from lmd_plane.errors import PlaneError

from lmd_operator.runtime.metrics import Metrics

CHART = Path(__file__).parents[3] / "charts" / "lmd-operator"
RULES: dict[str, Any] = {
    rule["alert"]: rule for group in yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
}
CONDITION = 'lmd_operator_deployment_condition{{namespace="n",name="{}",condition="{}",status="{}"}} 1\n'
REQUESTS = 'lmd_operator_api_requests_total{{verb="apply",resource="services",code="{}"}} {}\n'
OUTCOMES = 'lmd_operator_reconciles_total{{outcome="{}"}} {}\n'
MANY = REQUESTS.format(200, 99)
FEW = REQUESTS.format(200, 1)
REPLICAS = 'lmd_operator_deployment_replicas{{namespace="n",name="a",state="{}"}} {}\n'


def _fires(alert: str, now: str, before: str = "") -> bool:
    target = {"namespace": "system", "pod": "operator-0"}
    return bool(firing(RULES[alert]["expr"], scraped(now, **target), scraped(before, **target)))


@pytest.mark.parametrize(
    ("alert", "now", "before", "expected"),
    [
        ("LMDOperatorHasNoLeader", "lmd_operator_leader 1\n", "", False),
        ("LMDOperatorHasNoLeader", "lmd_operator_leader 0\n", "", True),
        ("LMDOperatorQueueStuck", "lmd_operator_leader 1\nlmd_operator_queue_oldest_seconds 121\n", "", True),
        ("LMDOperatorQueueStuck", "lmd_operator_leader 0\nlmd_operator_queue_oldest_seconds 121\n", "", False),
        ("LMDOperatorQueueStuck", "lmd_operator_leader 1\nlmd_operator_queue_oldest_seconds 9\n", "", False),
        ("LMDOperatorDefect", OUTCOMES.format("defect", 1), OUTCOMES.format("defect", 0), True),
        ("LMDOperatorDefect", OUTCOMES.format("done", 9), OUTCOMES.format("done", 0), False),
        ("LMDOperatorForbidden", REQUESTS.format(403, 2), REQUESTS.format(403, 1), True),
        ("LMDOperatorForbidden", REQUESTS.format(403, 2), REQUESTS.format(403, 2), False),
        ("LMDOperatorRequestsFail", REQUESTS.format(0, 9) + MANY, REQUESTS.format(0, 1) + REQUESTS.format(200, 98), True),
        ("LMDOperatorRequestsFail", REQUESTS.format(500, 4) + MANY, REQUESTS.format(500, 3) + FEW, False),
        ("LMDOperatorWatchSilent", 'lmd_operator_watch_silence_seconds{resource="pods"} 181\n', "", True),
        ("LMDOperatorWatchSilent", 'lmd_operator_watch_silence_seconds{resource="pods"} 70\n', "", False),
        ("LMDOperatorOverloaded", "lmd_operator_event_loop_lag_seconds 1.5\n", "", True),
        ("LargeModelDeploymentRefused", CONDITION.format("a", "Accepted", "False"), "", True),
        ("LargeModelDeploymentRefused", CONDITION.format("a", "Accepted", "True"), "", False),
        ("LargeModelDeploymentStalled", CONDITION.format("a", "Stalled", "True"), "", True),
        ("LargeModelDeploymentStalled", CONDITION.format("a", "Stalled", "True") + CONDITION.format("a", "Accepted", "False"), "", False),
        ("LargeModelDeploymentStalled", CONDITION.format("a", "Stalled", "True") + CONDITION.format("b", "Accepted", "False"), "", True),
        ("LargeModelDeploymentNotReady", CONDITION.format("a", "Ready", "False"), "", True),
        ("LargeModelDeploymentDown", REPLICAS.format("ready", 0) + REPLICAS.format("existing", 2), "", True),
        ("LargeModelDeploymentDown", REPLICAS.format("ready", 1) + REPLICAS.format("existing", 2), "", False),
        ("LargeModelDeploymentDown", REPLICAS.format("ready", 0) + REPLICAS.format("existing", 0), "", False),
    ],
)  # fmt: skip
def test_a_rule_holds_of_its_fault_and_not_of_health(alert: str, now: str, before: str, expected: bool) -> None:
    assert _fires(alert, now, before) is expected


def test_a_series_that_has_just_appeared_has_not_increased() -> None:
    """So what alerts on an increase must be there from the start; the first defect would be missed."""
    assert not _fires("LMDOperatorDefect", OUTCOMES.format("defect", 1))
    metrics = Metrics()
    outcomes = {sample.labels["outcome"] for family in metrics.reconciles.collect() for sample in family.samples}
    assert "defect" in outcomes


@pytest.mark.parametrize("expression", ["topk(3, a)", "a > 1 or b", "a{", "a offset 5m", "a[5m]"])
def test_what_is_not_understood_is_not_passed_over(expression: str) -> None:
    with pytest.raises(PlaneError):
        firing(expression, scraped("a 2\nb 2\n"))
