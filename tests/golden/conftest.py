"""Golden files: what the code writes, as text that a reviewer reads in the diff."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
Golden = Callable[[str, str], None]


@pytest.fixture
def golden() -> Golden:
    """Compare text with `tests/golden/<path>`; `UPDATE_GOLDEN=1` rewrites the file instead."""
    return compare


def compare(path: str, text: str) -> None:
    """Fail with a unified diff when the text differs from the file."""
    file = HERE / path
    if os.environ.get("UPDATE_GOLDEN") == "1":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return
    kept = file.read_text(encoding="utf-8") if file.exists() else None
    if kept != text:
        diff = "".join(difflib.unified_diff(_lines(kept or ""), _lines(text), f"tests/golden/{path}", "what the code writes now"))
        why = "does not exist yet" if kept is None else "differs"
        pytest.fail(f"tests/golden/{path} {why}; if this is meant, run the test again with UPDATE_GOLDEN=1\n{diff}", pytrace=False)


def _lines(text: str) -> list[str]:
    return [line if line.endswith("\n") else f"{line}\n\\ no newline at the end\n" for line in text.splitlines(keepends=True)]
