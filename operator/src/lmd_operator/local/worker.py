"""Questions that the worker answers on this machine, as `lmd-worker` commands: the operator's package does not import it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from lmd_operator.errors import LocalRunError


def ask(*arguments: str, given: str | None = None) -> dict[str, Any]:
    """Return the JSON object that a command prints, with this text as its standard input. Raises `LocalRunError` with its last words."""
    command = [sys.executable, "-m", "lmd_worker", *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["lmd-worker ended without a word"]
        raise LocalRunError(lines[-1].removeprefix("lmd: "))
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
