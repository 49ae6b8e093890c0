"""kubectl against one cluster, as its users run it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmd_plane.components import LOOPBACK

KUBECTL_SECONDS = 120


class Kubectl:
    """kubectl against one cluster, in one namespace if given; `command` is what comes before its arguments."""

    def __init__(self, program: str, kubeconfig: Path, namespace: str | None = None) -> None:
        self.command = [program, "--kubeconfig", str(kubeconfig), *(["--namespace", namespace] if namespace else [])]

    def run(self, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        """Return what it said, whatever its status."""
        command = [*self.command, *arguments]
        return subprocess.run(command, input=given, capture_output=True, text=True, timeout=KUBECTL_SECONDS, check=False)

    def __call__(self, *arguments: str, given: str | None = None) -> str:
        """Return its output; fail with its words unless it succeeds."""
        answer = self.run(*arguments, given=given)
        assert answer.returncode == 0, f"kubectl {' '.join(arguments)}: {answer.stderr}"
        return answer.stdout

    def json(self, *arguments: str) -> Any:
        """Return what `get` and its kin find."""
        return json.loads(self(*arguments, "--output", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects given as plain data."""
        self("apply", "--filename", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    @contextmanager
    def forwarded(self, target: str, port: int) -> Iterator[int]:
        """Lead a port of loopback to a port of `pod/NAME` or `service/NAME` for the length of the block."""
        command = [*self.command, "port-forward", "--address", LOOPBACK, target, f":{port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                words = process.stdout.readline() if process.stdout else ""
                match = re.search(r"^Forwarding from \S+:(\d+) -> ", words)
                assert match, f"kubectl port-forward {target}: {words or 'it ended, see above'}"
                yield int(match[1])
            finally:
                process.kill()
