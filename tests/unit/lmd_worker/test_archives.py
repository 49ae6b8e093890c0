"""A user's archive or directory becomes a model directory of ours, or is refused; nothing is written outside it."""

from __future__ import annotations

import io
import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmd_worker import archives, merging
from lmd_worker.environment import Environment
from lmd_worker.errors import SettingsError

OURS = {
    "minWorkers": 1,
    "maxWorkers": 1,
    "maxRetryTimeoutInSec": 0,
    "batchSize": 8,
    "deviceType": "cpu",
    "parallelType": "tp",
    "torchrun": {"nnodes": 1, "nproc-per-node": 3},
    "handler": {"model_path": "/models/small"},
    "deepspeed": {"config": "ds-config.json"},
}
MANIFEST = {"runtime": "python", "model": {"modelName": "any", "handler": "mine.py", "modelVersion": "9"}}


def packed(files: dict[str, str | bytes], *, links: tuple[str, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            if name in links:
                entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, content)
    return buffer.getvalue()


def good(**more: str | bytes) -> dict[str, str | bytes]:
    return {"MAR-INF/MANIFEST.json": json.dumps(MANIFEST), "mine.py": "class A: ...", **more}


@pytest.fixture
def compose(tmp_path: Path) -> Callable[[bytes | Path], Path]:
    """Compose with an archive of these bytes, or a directory; return the model directory."""

    def compose(source: bytes | Path) -> Path:
        path = tmp_path / "volume" / "handler.mar" if isinstance(source, bytes) else source
        if isinstance(source, bytes):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(source)
        rendered = tmp_path / "store" / "m"
        (rendered / "MAR-INF").mkdir(parents=True)
        (rendered / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"model": {"modelName": "m", "handler": "lmd_worker.custom"}}))
        (rendered / "model-config.yaml").write_text(yaml.safe_dump({**OURS, "custom": {"handler": "handler.py", "archive": str(path)}}))
        (rendered / "ds-config.json").write_text(json.dumps({"dtype": "float32", "tensor_parallel": {"tp_size": 3}}))
        variables = {"LMD_MODEL_NAME": "m", "LMD_MODEL_STORE": str(tmp_path / "store"), "LMD_RUN_DIR": str(tmp_path / "run")}
        return archives.composed(Environment.from_variables(variables)).model_directory

    return compose


def test_an_archive_is_unpacked_and_ours_wins_where_failures_are_handled(compose: Callable[[bytes | Path], Path]) -> None:
    own = {
        "minWorkers": 4,
        "batchSize": 2,
        "parallelLevel": 4,
        "deviceIds": [0],
        "handler": {"model_path": "x", "seed": 7},
        "mine": {"a": 1},
    }
    directory = compose(packed(good(**{"model-config.yaml": yaml.safe_dump(own), "extra/labels.txt": "one"})))
    config = yaml.safe_load((directory / "model-config.yaml").read_text())
    assert config["minWorkers"] == 1
    assert config["batchSize"] == 2
    assert "parallelLevel" not in config
    assert "deviceIds" not in config
    assert config["handler"] == {"model_path": "/models/small", "seed": 7}
    assert config["mine"] == {"a": 1}
    assert config["torchrun"] == OURS["torchrun"]
    assert config["custom"]["handler"] == "mine.py"
    manifest = json.loads((directory / "MAR-INF" / "MANIFEST.json").read_text())
    assert manifest["model"] == {"modelName": "m", "handler": "lmd_worker.custom", "modelVersion": "9"}
    assert (directory / "extra" / "labels.txt").read_text() == "one"
    assert json.loads((directory / "ds-config.json").read_text())["tensor_parallel"]["tp_size"] == 3


def test_an_own_ds_config_keeps_all_but_the_degree(compose: Callable[[bytes | Path], Path]) -> None:
    own = {"dtype": "bfloat16", "tensor_parallel": {"tp_size": 8, "tp_grain_size": 16}}
    config = {"deepspeed": {"config": "my-ds.json"}}
    directory = compose(packed(good(**{"model-config.yaml": yaml.safe_dump(config), "my-ds.json": json.dumps(own)})))
    assert json.loads((directory / "ds-config.json").read_text()) == {
        "dtype": "bfloat16",
        "tensor_parallel": {"tp_size": 3, "tp_grain_size": 16},
    }
    assert yaml.safe_load((directory / "model-config.yaml").read_text())["deepspeed"] == {"config": "ds-config.json"}


def test_a_directory_is_linked_and_not_changed(compose: Callable[[bytes | Path], Path], tmp_path: Path) -> None:
    source = tmp_path / "volume" / "mine"
    (source / "MAR-INF").mkdir(parents=True)
    (source / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(MANIFEST))
    (source / "mine.py").write_text("class A: ...")
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    directory = compose(source)
    assert (directory / "mine.py").read_text() == "class A: ..."
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


BAD: dict[str, tuple[dict[str, str | bytes], tuple[str, ...], str]] = {
    "a path upwards": (good(**{"../evil.py": ""}), (), "leaves its directory"),
    "a path upwards in the middle": (good(**{"a/../../evil.py": ""}), (), "leaves its directory"),
    "an absolute path": (good(**{"/etc/evil.py": ""}), (), "leaves its directory"),
    "a backslash": (good(**{"..\\evil.py": ""}), (), "leaves its directory"),
    "a line break": (good(**{"a\nb.py": ""}), (), "leaves its directory"),
    "a link": (good(link="/etc/passwd"), ("link",), "the link"),
    "no manifest": ({"mine.py": ""}, (), "names no handler"),
    "a manifest that is a list": ({"MAR-INF/MANIFEST.json": "[]"}, (), "must be a mapping"),
    "a manifest that is no JSON": ({"MAR-INF/MANIFEST.json": "{"}, (), "reading"),
    "no handler": ({"MAR-INF/MANIFEST.json": '{"model": {}}'}, (), "names no handler"),
    "a handler that is a number": ({"MAR-INF/MANIFEST.json": '{"model": {"handler": 1}}'}, (), "names no handler"),
    "a configuration that is a list": (good(**{"model-config.yaml": "[]"}), (), "must be a mapping"),
    "requirements": (
        {"MAR-INF/MANIFEST.json": json.dumps({"model": {"handler": "a.py", "requirementsFile": "requirements.txt"}})},
        (),
        "spec.template.image",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_archive_is_refused_in_a_sentence(compose: Callable[[bytes | Path], Path], tmp_path: Path, case: str) -> None:
    files, links, words = BAD[case]
    with pytest.raises(SettingsError, match=words) as caught:
        compose(packed(files, links=links))
    assert str(caught.value).isprintable()
    outside = {path.name for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "run")}
    assert outside == {"volume", "handler.mar", "store", "m", "MAR-INF", "MANIFEST.json", "model-config.yaml", "ds-config.json"}


def test_bytes_that_are_no_archive_are_refused(compose: Callable[[bytes | Path], Path]) -> None:
    with pytest.raises(SettingsError, match=r"no \.mar"):
        compose(b"not a zip")


def test_an_archive_that_lies_about_its_size_is_refused(compose: Callable[[bytes | Path], Path]) -> None:
    data = packed(good(big=b"x" * 1000))
    with pytest.raises(SettingsError):
        compose(data.replace((1000).to_bytes(4, "little"), (10).to_bytes(4, "little")))


def test_a_very_large_archive_is_refused_before_anything_is_unpacked(
    compose: Callable[[bytes | Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "LARGEST_BYTES", 100)
    with pytest.raises(SettingsError, match="more than 1 GiB"):
        compose(packed(good(big="x" * 200)))


def test_an_archive_that_is_not_there_is_named(compose: Callable[[bytes | Path], Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.mar: no such"):
        compose(tmp_path / "absent.mar")


def test_a_link_out_of_a_directory_is_refused(compose: Callable[[bytes | Path], Path], tmp_path: Path) -> None:
    source = tmp_path / "volume" / "mine"
    source.mkdir(parents=True)
    (source / "key").symlink_to("/etc/hostname")
    with pytest.raises(SettingsError, match="leaves"):
        compose(source)


def test_without_an_archive_nothing_is_composed(tmp_path: Path) -> None:
    environment = Environment.from_variables({"LMD_MODEL_NAME": "m", "LMD_MODEL_STORE": str(tmp_path)})
    assert archives.composed(environment) is environment


@pytest.mark.parametrize("theirs", [{}, {"handler": 1, "deepspeed": None}, {"minWorkers": 9, "torchrun": {"nproc-per-node": 9}, "x": [1]}])
def test_what_failure_handling_stands_on_is_always_ours(theirs: dict[str, Any]) -> None:
    result = archives.merged(theirs, OURS)
    assert {key: result[key] for key in OURS if key != "batchSize"} == {key: value for key, value in OURS.items() if key != "batchSize"}


def test_what_wins_is_read_off_the_result(tmp_path: Path) -> None:
    own = {
        "minWorkers": 4,
        "batchSize": 2,
        "parallelLevel": 4,
        "deviceType": "cpu",
        "handler": {"model_path": "x", "seed": 7},
        "mine": {"a": 1},
    }
    deepspeed = {"dtype": "bfloat16", "tensor_parallel": {"tp_size": 8}}
    archive = tmp_path / "handler.mar"
    archive.write_bytes(packed(good(**{"model-config.yaml": yaml.safe_dump(own), "ds-config.json": json.dumps(deepspeed)})))
    texts = {
        "MANIFEST.json": json.dumps({"model": {"modelName": "m", "handler": "lmd_worker.custom"}}),
        "model-config.yaml": yaml.safe_dump({**OURS, "custom": {"handler": "handler.py", "archive": "/models/handler.mar"}}),
        "ds-config.json": json.dumps({"dtype": "float32", "tensor_parallel": {"tp_size": 3}}),
    }
    found = merging.merged(texts, archive)
    rows = {tuple(line.split()[:2]): line.split(maxsplit=2)[2] for line in found[merging.TABLE].splitlines()}
    said = {key: " ".join(text.split()) for (_, key), text in rows.items()}
    assert said["minWorkers"] == "operator 1; the archive has 4"
    assert said["parallelLevel"] == "operator left out; the archive has 4"
    assert said["batchSize"] == "archive 2; the operator has 8"
    assert said["deviceType"] == 'both "cpu"'
    assert said["handler.model_path"] == 'operator "/models/small"; the archive has "x"'
    assert said["handler.seed"] == "archive 7"
    assert said["mine"] == 'archive {"a": 1}'
    assert said["tensor_parallel.tp_size"] == "operator 3; the archive has 8"
    assert said["dtype"] == 'archive "bfloat16"; the operator has "float32"'
    assert yaml.safe_load(found["model-config.yaml"])["custom"] == {"handler": "mine.py", "archive": "/models/handler.mar"}


def test_what_is_shown_is_what_runs(compose: Callable[[bytes | Path], Path], tmp_path: Path) -> None:
    content = packed(good(**{"model-config.yaml": yaml.safe_dump({"batchSize": 2, "mine": 1})}))
    directory = compose(content)
    rendered = tmp_path / "store" / "m"
    names = {"MANIFEST.json": "MAR-INF/MANIFEST.json", "model-config.yaml": "model-config.yaml", "ds-config.json": "ds-config.json"}
    found = merging.merged({name: (rendered / place).read_text() for name, place in names.items()}, tmp_path / "volume" / "handler.mar")
    assert {name: found[name] for name in names} == {name: (directory / place).read_text() for name, place in names.items()}
