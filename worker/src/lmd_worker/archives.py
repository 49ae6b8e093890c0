"""A user's `.mar` or model directory -> a model directory of ours in scratch space: their files, our way of running them.

Who wins, between the archive and the operator:

| part | winner |
|---|---|
| MANIFEST.json: model name, version, handler (ours calls theirs) | operator |
| model-config.yaml: workers, ranks, devices, timeouts, queue, retries, `handler.model_path`, `deepspeed.config` | operator |
| model-config.yaml: everything else: batching, other keys of `handler` and `deepspeed`, sections of the user's own | archive |
| ds-config.json: `tensor_parallel.tp_size` | operator |
| ds-config.json: everything else | archive, or the operator's file where the archive has none |
"""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from lmd_worker.environment import Environment
from lmd_worker.errors import SettingsError

MANIFEST = "MAR-INF/MANIFEST.json"
MODEL_CONFIG = "model-config.yaml"
DS_CONFIG = "ds-config.json"
LARGEST_BYTES = 2**30
"""Unpacked: handlers and their small files. Weights lie beside the archive, where `handler.model_path` says."""
MOST_FILES = 10_000
_OURS = (
    "minWorkers", "maxWorkers", "maxRetryTimeoutInSec", "responseTimeout", "startupTimeout", "jobQueueSize", "deviceType", "deviceIds",
    "parallelType", "parallelLevel", "torchrun", "custom",
)  # fmt: skip
"""Frontend keys that the failure handling and the degree stand on; absent with us means absent."""


def composed(environment: Environment) -> Environment:
    """Return the environment to run with: its model store is a composed one where the rendered configuration names an archive.

    Raises `SettingsError` when the archive is missing, tries to leave its directory, or asks for what is refused.
    """
    rendered = environment.model_directory
    config = _mapping_if_any(rendered / MODEL_CONFIG)
    custom = config.get("custom")
    if not isinstance(custom, dict) or "archive" not in custom:
        return environment
    store = environment.run_directory / "store"
    shutil.rmtree(store, ignore_errors=True)
    target = store / environment.model_name
    target.mkdir(parents=True)
    take(Path(custom["archive"]), target)
    overlay(rendered, config, target)
    return replace(environment, model_store=store)


def merged(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model-config.yaml to run with, by the table above. Pure."""
    result = {key: value for key, value in theirs.items() if key not in _OURS}
    for key, value in ours.items():
        if key in ("handler", "deepspeed"):
            section = theirs.get(key)
            result[key] = {**(section if isinstance(section, dict) else {}), **value}
        elif key in _OURS:
            result[key] = value
        else:
            result.setdefault(key, value)
    return result


def take(source: Path, target: Path) -> None:
    """Put an archive's files into an empty directory. Raises `SettingsError` for one that is not trusted."""
    if source.is_dir():
        _link(source, target)
    elif source.is_file():
        _unpack(source, target)
    else:
        raise SettingsError(f"{source}: no such archive or directory; correct spec.handler.archive.")


def _unpack(source: Path, target: Path) -> None:
    """Unpack a zip of plain files that stay inside `target`."""
    try:
        with zipfile.ZipFile(source) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _refuse(source, entries)
            for entry in entries:
                path = target / entry.filename
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as packed, path.open("xb") as file:
                    _copy(packed, file, entry.file_size, source)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise SettingsError(f"{source} is no .mar that torch-model-archiver would make: {error}.") from error
    except OSError as error:
        raise SettingsError(f"unpacking {source}: {error.strerror or type(error).__name__}.") from error


def _refuse(source: Path, entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MOST_FILES:
        raise SettingsError(f"{source} holds {len(entries)} files; an archive of a handler has at most {MOST_FILES}.")
    if sum(entry.file_size for entry in entries) > LARGEST_BYTES:
        raise SettingsError(f"{source} unpacks to more than 1 GiB; put the weights beside it on the volume and leave them out.")
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in name or any(ord(letter) < 32 for letter in name):
            raise SettingsError(f"{source} holds {name!a}, which leaves its directory; such an archive is not trusted.")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise SettingsError(f"{source} holds the link {name!a}; pack the file itself.")
        if name in seen:
            raise SettingsError(f"{source} holds {name!a} twice.")
        seen.add(name)


def _copy(packed: Any, file: Any, size: int, source: Path) -> None:
    """Copy as many bytes as the archive states, not more: the stated size is what was checked."""
    left = size
    while chunk := packed.read(min(2**20, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise SettingsError(f"{source} holds a file that is larger than it states; such an archive is not trusted.")
        file.write(chunk)


def _link(source: Path, target: Path) -> None:
    """Link every file of a directory; what would be changed is written anew later. Links that leave the directory are refused."""
    root = source.resolve()
    for number, path in enumerate(sorted(root.rglob("*"))):
        if number > MOST_FILES:
            raise SettingsError(f"{source} holds more than {MOST_FILES} files; name the model directory alone.")
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise SettingsError(f"{path} is a link that leaves {source}; put the file itself there.")
        if path.is_file():
            link = target / path.relative_to(root)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)


def their_config(target: Path) -> dict[str, Any]:
    """Return the model-config.yaml that the files in a directory bring, empty where they bring none."""
    manifest = _mapping_if_any(target / MANIFEST)
    model = manifest.get("model")
    path = target / str((model.get("configFile") if isinstance(model, dict) else None) or MODEL_CONFIG)
    return _mapping_if_any(path)


def overlay(rendered: Path, ours: Mapping[str, Any], target: Path) -> None:
    """Merge what was taken with what the operator rendered, by the table above."""
    manifest = _mapping_if_any(target / MANIFEST)
    model = manifest.get("model")
    model = dict(model) if isinstance(model, dict) else {}
    if model.get("requirementsFile"):
        raise SettingsError(
            f"the archive asks to install {model['requirementsFile']!a} at start, which is not done: build an image from the worker's own "
            "that has these packages, and set spec.template.image."
        )
    handler = model.get("handler")
    if not isinstance(handler, str) or not handler:
        raise SettingsError(f"the archive's {MANIFEST} names no handler; make it with torch-model-archiver --handler.")
    theirs = their_config(target)
    config = merged(theirs, ours)
    config["custom"] = {**ours["custom"], "handler": handler}
    own = _mapping(rendered / MANIFEST)
    _write(target / MANIFEST, json.dumps({**manifest, **own, "model": {**model, **own["model"]}}, indent=2))
    _write(target / MODEL_CONFIG, yaml.safe_dump(config, sort_keys=False))
    _write(target / DS_CONFIG, json.dumps(_deepspeed(target, theirs, _mapping(rendered / DS_CONFIG)), indent=2))


def their_deepspeed(target: Path, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the DeepSpeed configuration that the files in a directory bring, empty where they bring none."""
    section = theirs.get("deepspeed")
    name = section.get("config") if isinstance(section, dict) else None
    path = target / str(name) if name else target / DS_CONFIG
    return _mapping_if_any(path)


def _deepspeed(target: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    document = their_deepspeed(target, theirs)
    if not document:
        return dict(ours)
    parallel = document.get("tensor_parallel")
    degree = ours["tensor_parallel"]["tp_size"]
    return {**document, "tensor_parallel": {**(parallel if isinstance(parallel, dict) else {}), "tp_size": degree}}


def _mapping_if_any(path: Path) -> dict[str, Any]:
    return _mapping(path) if path.is_file() else {}


def _mapping(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML mapping. Raises `SettingsError` naming the file."""
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise SettingsError(f"reading {path}: {' '.join(str(error).split())[:200]}.") from error
    if not isinstance(document, dict):
        raise SettingsError(f"{path} must be a mapping.")
    return document


def _write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # it may be a link to the user's own
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
