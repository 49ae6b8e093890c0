"""Which path below the model's name is answered by what; the one place where a new route is added."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lmd_worker.api import plain
from lmd_worker.api.generation import Answer, Call, Generation, Part, Reply, Route

PLAIN = ""
"""`/predictions/<model>` itself."""
REPORT = "lmd/report"
"""`/predictions/<model>/1.0/lmd/report`: what every rank runs."""


def routes(model_name: str, report: Callable[[], str]) -> Mapping[str, Route]:
    """Return every route by its path. `report` gives the ranks' report as JSON."""

    def generate(call: Call) -> tuple[Generation, Reply]:
        return plain.parse(call), plain.PlainReply(model_name)

    def ranks(_: Call) -> Answer:
        return Answer(report().encode(), Part.ONLY)

    return {PLAIN: generate, REPORT: ranks}
