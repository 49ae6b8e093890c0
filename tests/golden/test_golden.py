from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Golden = Callable[[str, str], None]


@pytest.fixture
def folder(golden: Golden, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder in place of tests/golden."""
    monkeypatch.setitem(golden.__globals__, "HERE", tmp_path)
    monkeypatch.delenv("UPDATE_GOLDEN", raising=False)
    return tmp_path


def test_an_equal_text_passes(golden: Golden, folder: Path) -> None:
    (folder / "a.yaml").write_text("one: 1\n")
    golden("a.yaml", "one: 1\n")


def test_a_different_text_fails_with_a_diff_and_the_way_out(golden: Golden, folder: Path) -> None:
    (folder / "a.yaml").write_text("one: 1\ntwo: 2\n")
    with pytest.raises(pytest.fail.Exception) as caught:
        golden("a.yaml", "one: 1\ntwo: 3\n")
    assert "-two: 2\n+two: 3\n" in str(caught.value)
    assert "UPDATE_GOLDEN=1" in str(caught.value)


def test_a_missing_newline_at_the_end_is_a_difference(golden: Golden, folder: Path) -> None:
    (folder / "a.yaml").write_text("one: 1\n")
    with pytest.raises(pytest.fail.Exception, match="no newline"):
        golden("a.yaml", "one: 1")


@pytest.mark.usefixtures("folder")
def test_a_missing_file_fails_even_for_an_empty_text(golden: Golden) -> None:
    with pytest.raises(pytest.fail.Exception, match="does not exist yet"):
        golden("a.yaml", "")


def test_updating_writes_the_file_and_its_folder(golden: Golden, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPDATE_GOLDEN", "1")
    golden("new/a.yaml", "one: 1\n")
    assert (folder / "new/a.yaml").read_text() == "one: 1\n"
