"""A handler of the user's own, unchanged from TorchServe's documentation, under `lmd serve`: tokens as of one process."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.model
BIN = Path(sys.executable).parent


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a manifest with this handler and degree."""

    def write(handler: dict[str, Any], degree: int) -> Path:
        claim = {"claimName": "models", "path": "tiny"}
        spec = {
            "model": {"source": {"persistentVolumeClaim": claim}},
            "parallelism": {"tensor": degree},
            "engine": {"dtype": "float32", "torchServe": {"startupTimeoutSeconds": 200}},
            "accelerator": {"type": "CPU"},
            "handler": handler,
        }
        document = {"apiVersion": "largemodel.dev/v1alpha1", "kind": "LargeModelDeployment", "metadata": {"name": "classic"}, "spec": spec}
        file = tmp_path / "classic.yaml"
        file.write_text(yaml.safe_dump(document))
        return file

    return write


def command(manifest: Path, volume: Path, handlers: Path, *more: str) -> list[str]:
    return [
        str(BIN / "lmd"),
        "serve",
        str(manifest),
        "--port",
        "0",
        "--claim",
        f"models={volume}",
        "--end-with-parent",
        "--config-map",
        f"mine={handlers}",
        *more,
    ]


@pytest.mark.parametrize(
    ("handler", "degree"),
    [
        pytest.param({"configMapRef": {"name": "mine"}}, 1, id="ConfigMap, one rank"),
        pytest.param({"configMapRef": {"name": "mine"}}, 3, id="ConfigMap, three ranks"),
        pytest.param({"archive": "any.mar"}, 1, id="archive, one rank"),
        pytest.param({"archive": "any"}, 1, id="directory, one rank", marks=pytest.mark.long),
        pytest.param({"archive": "any.mar"}, 3, id="archive, three ranks", marks=pytest.mark.long),
        pytest.param({"archive": "any"}, 3, id="directory, three ranks", marks=pytest.mark.long),
    ],
)
def test_the_documented_handler_runs_unchanged(handlers: Any, write: Callable[..., Path], handler: dict[str, Any], degree: int) -> None:
    arguments = command(write(handler, degree), handlers.volume, handlers.sources)
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if (found := re.search(r"base URL http://127\.0\.0\.1:(\d+),", line)) is not None:
                break
        else:
            pytest.fail("".join(lines))
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        for _ in range(2):
            connection.request("POST", "/predictions/classic", handlers.prompt.encode(), {"Content-Type": "text/plain"})
            answer = connection.getresponse()
            assert (answer.status, answer.read().decode()) == (200, handlers.answer)
        connection.close()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_an_import_error_is_told_with_the_last_line_of_the_traceback(handlers: Any, write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text("import absent_package\n")
    arguments = command(write({"configMapRef": {"name": "mine"}}, 1), handlers.volume, tmp_path, "--once")
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200, check=False)
    assert done.returncode == 1
    told = "the handler handler.py cannot be imported: ModuleNotFoundError: No module named 'absent_package' (handler.py, line 1)"
    assert told in done.stdout
