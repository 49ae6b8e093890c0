"""The health script for Argo CD, run in the Lua that Argo CD runs, over every situation of the status."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lupa.lua51
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = (ROOT / "docs" / "argocd-health.lua").read_text()
STATUS = runpy.run_path(str(ROOT / "tests" / "unit" / "lmd_operator" / "test_status.py"))
EXPECTED = {"InProgress": "Progressing", "Failed": "Degraded", "Current": "Healthy"}
"""kstatus' word, which the situations have -> Argo CD's."""
Health = Callable[[dict[str, Any]], tuple[str, str]]
Document = dict[str, Any]


@pytest.fixture(scope="module")
def health() -> Health:
    """Run the script as Argo CD does: the object is `obj`, and few libraries are open."""
    lua = lupa.lua51.LuaRuntime(unpack_returned_tuples=True)
    for library in ("io", "math", "string", "debug", "coroutine", "python"):
        lua.globals()[library] = None
    script = lua.eval(f"function(given) obj = given; return (function()\n{SCRIPT}\nend)() end")

    def run(document: Document) -> tuple[str, str]:
        answer = script(lua.table_from(document, recursive=True))
        return answer["status"], answer["message"]

    return run


def an_object(conditions: dict[str, str] | None = None, *, observed: int | None = 2) -> Document:
    """Write conditions as `{"Ready": "True/Suspended"}`."""
    status: Document = {}
    if observed is not None:
        status["observedGeneration"] = observed
    if conditions is not None:
        entries = [(kind, *text.split("/")) for kind, text in conditions.items()]
        status["conditions"] = [{"type": kind, "status": truth, "reason": reason, "message": "Why."} for kind, truth, reason in entries]
    return {"metadata": {"name": "llama", "generation": 2}, "status": status}


REST = {"Reconciling": "False/Settled", "Stalled": "False/Settled"}
TABLE = [
    ("nobody has looked yet", {"metadata": {"generation": 1}}, "Progressing"),
    ("an empty status", {"metadata": {"generation": 1}, "status": {}}, "Progressing"),
    ("conditions without a generation", an_object({"Ready": "True/ReplicasReady", **REST}, observed=None), "Progressing"),
    ("a status about an older spec", an_object({"Ready": "True/ReplicasReady", **REST}, observed=1), "Progressing"),
    ("an older spec that was stuck", an_object({"Ready": "False/X", "Stalled": "True/X"}, observed=1), "Progressing"),
    ("all is well", an_object({"Ready": "True/ReplicasReady", **REST}), "Healthy"),
    ("it rolls out while old ones answer", an_object({"Ready": "True/ReplicasReady", "Reconciling": "True/RollingOut"}), "Progressing"),
    ("a bad revision while old ones answer", an_object({"Ready": "True/ReplicasReady", "Stalled": "True/ImagePull"}), "Degraded"),
    ("it is suspended", an_object({"Ready": "True/Suspended", **REST}), "Suspended"),
    ("it is being suspended", an_object({"Ready": "True/Suspended", "Reconciling": "True/Progressing"}), "Progressing"),
    ("no replica is asked for", an_object({"Ready": "True/ScaledToZero", **REST}), "Healthy"),
    ("no condition is there", an_object({}), "Progressing"),
    ("it is not ready for no reason", an_object({"Ready": "False/PodsPending", **REST}), "Progressing"),
]


@pytest.mark.parametrize(("document", "expected"), [pytest.param(document, expected, id=name) for name, document, expected in TABLE])
def test_the_table(health: Health, document: Document, expected: str) -> None:
    status, message = health(document)
    assert status == expected
    assert message.endswith(".")


def situations() -> Iterator[Any]:
    for case in STATUS["SITUATIONS"]:
        yield pytest.param(*case.values, id=case.id)


@pytest.mark.parametrize(("spec", "seen", "entry"), list(situations()))
def test_it_agrees_with_kstatus_in_every_situation(health: Health, spec: Document, seen: Any, entry: dict[str, str]) -> None:
    document = STATUS["document"](STATUS["summary"](seen, **spec))
    expected = EXPECTED[entry["kstatus"]]
    if expected == "Healthy" and spec.get("suspend"):
        expected = "Suspended"
    status, message = health(document)
    assert status == expected
    conditions = {condition["type"]: condition for condition in document["status"]["conditions"]}
    deciding = {"Degraded": "Stalled", "Progressing": "Reconciling"}.get(expected, "Ready")
    assert message == f"{conditions[deciding]['reason']}: {conditions[deciding]['message']}"


def test_a_refused_spec_is_degraded(health: Health) -> None:
    from lmd_operator.errors import Problem
    from lmd_operator.status import refused

    problems = [Problem("spec.parallelism.tensor", "must divide the number of heads")]
    status, message = health(STATUS["document"](refused(7, problems, STATUS["NOTHING"], STATUS["T1"])))
    assert status == "Degraded"
    assert "spec.parallelism.tensor" in message
