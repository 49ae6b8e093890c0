"""The chart as helm renders it, kept in files: what is in them is checked without helm, that they are current with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lmd_plane.binaries import build

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "lmd-operator"
Helm = Callable[..., subprocess.CompletedProcess[str]]
Golden = Callable[[Path, str], None]


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """helm, with folders of its own; built the first time, which takes minutes."""
    program = build(["helm"], say=lambda words: print(words, file=sys.__stderr__, flush=True))["helm"]
    home = tmp_path_factory.mktemp("helm")
    environment = os.environ | {f"HELM_{name}_HOME": str(home / name) for name in ("CACHE", "CONFIG", "DATA")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(program), *arguments], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120, check=False
        )

    return run


@pytest.fixture
def golden() -> Golden:
    """Compare text with a file; `UPDATE_GOLDEN=1` rewrites the file instead."""

    def compare(file: Path, text: str) -> None:
        if os.environ.get("UPDATE_GOLDEN") == "1":
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        kept = file.read_text(encoding="utf-8") if file.exists() else ""
        assert kept.splitlines() == text.splitlines(), f"{file.relative_to(ROOT)} differs; if this is meant, run again with UPDATE_GOLDEN=1"

    return compare
