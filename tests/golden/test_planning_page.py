"""docs/planning.md is what the planner says; a change of a rule or of a formula is a change of that page."""

from __future__ import annotations

import os
from pathlib import Path

from lmd_operator.planning.tables import document

PAGE = Path(__file__).parents[2] / "docs" / "planning.md"


def test_the_page_is_what_the_planner_says() -> None:
    if os.environ.get("UPDATE_GOLDEN") == "1":
        PAGE.write_text(document(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == document(), "run make generate"
