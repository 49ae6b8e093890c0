"""The command line: exit codes, documents, and what it says when something is wrong."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lmd_operator.cli import app

EXAMPLES = Path(__file__).parents[3] / "crds" / "examples"
SMOLLM2 = (EXAMPLES / "smollm2.yaml").read_text()
BAD = SMOLLM2.replace("tensor: 3", "tensor: 0")


def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


def test_validate_accepts_every_example() -> None:
    files = sorted(map(str, EXAMPLES.glob("*.yaml")))
    status, out, _ = run("validate", *files)
    assert status == 0
    assert len(out.splitlines()) == len(files) == 4


def test_validate_names_file_document_field_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(f"{SMOLLM2}\n---\n{BAD}")
    status, out, err = run("validate", str(path))
    assert status == 1
    assert out == f"{path}#1: smollm2 is valid\n"
    assert err.startswith(f"lmd: {path}#2: spec.parallelism.tensor must be ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "standard input: it holds no document: write a LargeModelDeployment", id="nothing"),
        pytest.param("a: [", "the text is no valid YAML", id="broken YAML"),
        pytest.param("a: 1\na: 2\n", "standard input: line 2 the key a is given twice in one mapping", id="a key twice"),
        pytest.param("kind: Pod\n", "only this kind is read here", id="another kind"),
        pytest.param("- 1\n", "the document is a list, not a mapping", id="a list"),
        pytest.param("? [a]\n: 1\n", "a mapping key must be text", id="a list as key"),
        pytest.param("a: !!python/object/apply:os.system [x]\n", "the text is no valid YAML", id="a YAML tag that runs code"),
    ],
)
def test_text_that_is_no_object_is_refused_in_words(text: str, message: str) -> None:
    status, _, err = run("validate", "-", stdin=text)
    assert status == 1
    assert message in err


def test_a_missing_file_is_named() -> None:
    status, _, err = run("validate", "nowhere.yaml")
    assert (status, err) == (1, "lmd: nowhere.yaml: No such file or directory: name an existing file, or - for standard input\n")


def test_render_prints_kubernetes_objects_from_standard_input() -> None:
    status, out, _ = run("render", "-", stdin=SMOLLM2)
    kinds = [document["kind"] for document in yaml.safe_load_all(out)]
    assert status == 0
    assert kinds == ["ConfigMap", "NetworkPolicy", "Service", "Deployment"]


def test_render_files_prints_the_texts_the_worker_reads() -> None:
    _, out, _ = run("render", "--files", "-", stdin=SMOLLM2)
    files = yaml.safe_load(out)["smollm2"]
    assert sorted(files) == ["MANIFEST.json", "config.properties", "ds-config.json", "haproxy.cfg", "model-config.yaml"]
    assert json.loads(files["ds-config.json"])["tensor_parallel"]["tp_size"] == 3


def test_render_into_a_directory_writes_what_it_would_print(tmp_path: Path) -> None:
    status, out, _ = run("render", "-o", "dir", "-d", str(tmp_path), "-", stdin=SMOLLM2)
    assert status == 0
    assert sorted(Path(line).name for line in out.splitlines()) == [
        "configmap.yaml",
        "deployment.yaml",
        "networkpolicy.yaml",
        "service.yaml",
    ]
    printed = run("render", "-", stdin=SMOLLM2)[1]
    assert all(Path(line).read_text() in printed for line in out.splitlines())


def test_render_refuses_a_wrong_document_and_prints_nothing() -> None:
    status, out, err = run("render", "-", stdin=BAD)
    assert (status, out) == (1, "")
    assert "spec.parallelism.tensor" in err


def test_serve_asks_which_object_when_there_are_several() -> None:
    two = SMOLLM2 + "\n---\n" + SMOLLM2.replace("name: smollm2", "name: other")
    status, _, err = run("serve", "-", stdin=two)
    assert (status, err) == (1, "lmd: --name must choose one object; the file holds smollm2, other\n")


def test_a_wrong_command_line_ends_with_two() -> None:
    assert run("serve", "-", "--claim", "nonsense", stdin=SMOLLM2)[0] == 2
    assert run("nonsense")[0] == 2


ARCHIVED = Path(__file__).parents[2] / "scenarios" / "handler-in-an-archive.yaml"


def an_archive(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "handlers" / "classic.mar"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return folder


def test_render_shows_what_a_pod_makes_of_an_archive(tmp_path: Path) -> None:
    manifest = json.dumps({"model": {"handler": "mine.py"}})
    root = an_archive(tmp_path, {"MAR-INF/MANIFEST.json": manifest, "mine.py": "", "model-config.yaml": "minWorkers: 4\nbatchSize: 2\n"})
    status, out, _ = run("render", str(ARCHIVED), "--files", "--claim", f"models={root}")
    texts = yaml.safe_load(out)["classic"]
    config = yaml.safe_load(texts["model-config.yaml"])
    assert status == 0
    assert (config["minWorkers"], config["batchSize"], config["custom"]["handler"]) == (1, 2, "mine.py")
    assert config["custom"]["archive"] == "/models/handlers/classic.mar", "as in the pod"
    assert "archive" in next(line for line in texts["who-wins.txt"].splitlines() if "batchSize" in line)


def test_render_says_how_to_see_an_archive_that_is_elsewhere() -> None:
    status, out, err = run("render", str(ARCHIVED), "--files")
    assert status == 0
    assert "who-wins.txt" not in out
    assert "--claim models=DIRECTORY" in err


def test_render_refuses_an_archive_as_a_pod_would(tmp_path: Path) -> None:
    root = an_archive(tmp_path, {"../outside": ""})
    status, _, err = run("render", str(ARCHIVED), "--files", "--claim", f"models={root}")
    assert status == 1
    assert err.startswith("lmd: classic: ")
    assert "leaves its directory" in err
