"""The operator with a planner that gives every model two ranks: what asks for a plan has to be known before."""

from __future__ import annotations

import sys

from lmd_operator import __main__
from lmd_operator.api import availability
from lmd_operator.api.v1alpha1 import Spec
from lmd_operator.planning.plan import Plan
from lmd_operator.resources import desired


def settle(spec: Spec, cpu_cores: float | None = None) -> Plan:
    assert spec.parallelism.tensor == "Auto"
    return Plan(strategy="DeepSpeed", tensor=2, gpus_per_replica=2, threads_per_rank=1, reason="the planner of a test says so")


availability._NOT_BUILT = tuple(row for row in availability._NOT_BUILT if row[0] != "spec.parallelism.tensor")
desired.settle = settle
if __name__ == "__main__":
    sys.exit(__main__.main())
