"""How a user's handler is found, and how what is wrong with it is told."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmd_worker import custom, entry, rundir, watch
from lmd_worker.errors import SettingsError

NAMES = (f"users_handler_{number}" for number in itertools.count())
CLASS = """
import os

class Mine:
    def initialize(self, context):
        self.seen = context

    def handle(self, data, context):
        return [str(len(data))] * len(data)
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module into a folder on the path and return its file name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> str:
        name = next(NAMES)
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        return f"{name}.py"

    return write


def test_the_only_class_is_the_handler(write: Callable[[str], str]) -> None:
    handle, initialize = entry.load(write(CLASS))
    initialize("context")
    assert handle([1, 2], None) == ["2", "2"]


def test_a_function_is_called_to_initialize_too(write: Callable[[str], str]) -> None:
    handle, initialize = entry.load(write("def handle(data, context):\n    return data\n"))
    assert initialize("context") is None
    assert handle([1], None) == [1]


def test_a_function_of_another_name_is_taken_when_named(write: Callable[[str], str]) -> None:
    handle, _ = entry.load(write("def other(data, context):\n    return ['other']\n") + ":other")
    assert handle([1], None) == ["other"]


BAD = {
    "no such module": (None, "No module named"),
    "an import that fails": (
        "import absent_package\n",
        r"ModuleNotFoundError: No module named 'absent_package' \(users_handler_\d+.py, line 1\)",
    ),
    "a syntax error": ("def (:\n", "SyntaxError"),
    "an error while importing": ("x = 1 / 0\n", r"ZeroDivisionError: division by zero \(users_handler_\d+.py, line 1\)"),
    "two classes": ("class A: ...\nclass B: ...\n", "it defines A, B"),
    "no class": ("x = 1\n", "it defines none"),
    "a class without handle": ("class A:\n    def initialize(self, c): ...\n", "no method handle"),
    "a class without initialize": ("class A:\n    def handle(self, d, c): ...\n", "no method initialize"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_told(write: Callable[[str], str], case: str) -> None:
    text, words = BAD[case]
    name = "absent_handler.py" if text is None else write(text)
    with pytest.raises(SettingsError, match=words):
        entry.load(name)


def test_a_function_that_is_not_there_is_named(write: Callable[[str], str]) -> None:
    with pytest.raises(SettingsError, match="has no function other"):
        entry.load(write("x = 1\n") + ":other")


class EndedError(Exception):
    pass


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the process would have said before it ended."""
    said: list[str] = []

    def end(cause: str, **more: Any) -> None:
        said.append(cause)
        raise EndedError

    monkeypatch.setattr(watch, "tell_and_end", end)
    monkeypatch.setattr(watch.Watch, "start", lambda self: None)
    return said


def context(name: str) -> Any:
    return SimpleNamespace(model_yaml_config={"custom": {"handler": name}, "deviceType": "gpu"})


def test_requests_in_flight_are_told_while_they_are_answered(
    write: Callable[[str], str], ended: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMD_RUN_DIR", str(tmp_path / "run"))
    name = write(
        "from lmd_worker import rundir\nfrom pathlib import Path\nimport os\n"
        "def handle(data, context):\n"
        "    return [rundir.read_in_flight(Path(os.environ['LMD_RUN_DIR']))] if data else None\n"
    )
    handler = custom.UsersHandler()
    handler.initialize(context(name))
    assert handler.handle([1, 2, 3], None) == [3]
    assert rundir.read_in_flight(tmp_path / "run") == 0
    assert ended == []


def test_an_error_of_the_handler_is_passed_on_and_counts_no_longer(
    write: Callable[[str], str], ended: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMD_RUN_DIR", str(tmp_path / "run"))
    handler = custom.UsersHandler()
    handler.initialize(context(write("def handle(data, context):\n    return data and 1 / 0\n")))
    with pytest.raises(ZeroDivisionError):
        handler.handle([1], None)
    assert rundir.read_in_flight(tmp_path / "run") == 0


@pytest.mark.usefixtures("tmp_path")
def test_a_handler_that_cannot_initialize_ends_its_rank_with_the_cause(write: Callable[[str], str], ended: list[str]) -> None:
    text = "class A:\n    def initialize(self, c):\n        raise RuntimeError('no weights')\n    def handle(self, d, c): ...\n"
    with pytest.raises(EndedError):
        custom.UsersHandler().initialize(context(write(text)))
    assert ended[0].startswith("Rank 0: the handler users_handler_")
    assert "RuntimeError: no weights" in ended[0]
    assert "line 3" in ended[0]


def test_preparing_for_cpu_changes_only_what_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("deepspeed", entry.BASE_DEEPSPEED):
        monkeypatch.delitem(sys.modules, name, raising=False)
    entry.prepare_for_cpu()
    assert "deepspeed" not in sys.modules


def test_the_base_handler_names_the_cpu_as_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Base:
        device: Any = 0

        def initialize(self, context: Any) -> None:
            raise AssertionError

    monkeypatch.setitem(sys.modules, entry.BASE_DEEPSPEED, SimpleNamespace(BaseDeepSpeedHandler=Base))  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    entry.prepare_for_cpu()
    handler = Base()
    handler.initialize(None)
    assert str(handler.device) == "cpu"
