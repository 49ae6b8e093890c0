"""A handler of the user's own, unchanged from TorchServe's documentation, under `lmd serve`: tokens as of one process."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.model
HANDLERS = Path(__file__).parent / "handlers"
BIN = Path(sys.executable).parent
PROMPT = "w5 w17 w200 w3"


@pytest.fixture(scope="module")
def volume(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a claim would hold: the model, a `.mar` made by torch-model-archiver, and a model directory."""
    root = tmp_path_factory.mktemp("volume")
    shutil.copytree(tiny_llama, root / "tiny")
    own = root / "own-config.yaml"
    own.write_text(
        yaml.safe_dump({"minWorkers": 4, "batchSize": 2, "parallelType": "pp", "handler": {"model_path": "elsewhere", "seed": 7}})
    )
    common = ["--model-name", "any", "--version", "2.0", "--handler", str(HANDLERS / "handler.py"), "--config-file", str(own)]
    for form in ("default", "no-archive"):
        command = [str(BIN / "torch-model-archiver"), *common, "--archive-format", form, "--export-path", str(root)]
        subprocess.run(command, check=True, capture_output=True)
    return root


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> str:
    """The tokens of one process."""
    import torch
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    with torch.inference_mode():
        tokens = model.generate(tokenizer([PROMPT], return_tensors="pt")["input_ids"], max_new_tokens=12, do_sample=False)
    return " ".join(map(str, tokens[0].tolist()))


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
def test_the_documented_handler_runs_unchanged(
    volume: Path, expected: str, write: Callable[..., Path], handler: dict[str, Any], degree: int
) -> None:
    arguments = command(write(handler, degree), volume, HANDLERS)
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
            connection.request("POST", "/predictions/classic", PROMPT.encode(), {"Content-Type": "text/plain"})
            answer = connection.getresponse()
            assert (answer.status, answer.read().decode()) == (200, expected)
        connection.close()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_an_import_error_is_told_with_the_last_line_of_the_traceback(volume: Path, write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text("import absent_package\n")
    arguments = command(write({"configMapRef": {"name": "mine"}}, 1), volume, tmp_path, "--once")
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200, check=False)
    assert done.returncode == 1
    told = "the handler handler.py cannot be imported: ModuleNotFoundError: No module named 'absent_package' (handler.py, line 1)"
    assert told in done.stdout
