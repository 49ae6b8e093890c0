"""Failures that are caused, and what the status says of each: one sentence with the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lmd_plane.client import eventually

pytestmark = pytest.mark.node

SMALL = {"sharedMemory": "1Gi", "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "6Gi"}}}


def with_memory(request: str, limit: str) -> dict[str, Any]:
    return {**SMALL, "resources": {"requests": {"cpu": "100m", "memory": request}, "limits": {"memory": limit}}}


FAILURES = {
    "an image that is nowhere": ({"template": {**SMALL, "image": "registry.invalid/none:1"}}, "ImagePull", "spec.template.image"),
    "more memory than any node has": ({"template": with_memory("900Gi", "900Gi")}, "Unschedulable", "Insufficient memory"),
}
"""What the spec differs in, the reason of the condition, and what its message names, by what goes wrong."""


@pytest.mark.parametrize("failure", FAILURES)
def test_the_status_names_what_went_wrong_and_what_to_do(serve: Callable[..., Any], failure: str) -> None:
    spec, reason, named = FAILURES[failure]
    service = serve(wait=False, **spec)

    def told() -> bool:
        condition = service.condition("Ready")
        return condition.get("reason") == reason and named in condition["message"]

    try:
        eventually(told, f"reason {reason} that names {named}", seconds=240)
    finally:
        print(failure, service.condition("Ready"))
