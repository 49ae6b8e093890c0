"""What must hold of the files and the machine before the frontend may start; each problem is one sentence.

TorchServe refuses next to nothing: a typing error in model-config.yaml gives it a default, a parse error gives it one
whole model per CPU. So everything is read here first, with its rules and ours. Starts nothing but `java -version`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lmd_worker import properties
from lmd_worker.environment import MODEL_NAME, TEMPORARY_DIRECTORY, Environment
from lmd_worker.errors import SettingsError
from lmd_worker.settings import Settings

MODEL_CONFIG = "model-config.yaml"
MANIFEST = "MAR-INF/MANIFEST.json"
HANDLER = "lmd_worker.handler"
CUSTOM_HANDLER = "lmd_worker.custom"
OLDEST_JAVA = 17
LONGEST_SOCKET_PATH_BYTES = 107
"""What Linux takes in an address of a local socket, without its closing zero; man 7 unix."""
CUSTOM_PROPERTIES = {"disable_token_authorization": "true"}
"""A handler of the user's own gets requests as TorchServe decodes them."""
NEEDED_PROPERTIES = {"disable_token_authorization": "true", "decode_input_request": "false"}
"""Probes carry no token; requests must arrive as the bytes they are, or duplicate keys and NaN could not be refused."""


def problems(environment: Environment, variables: Mapping[str, str]) -> list[str]:
    """Return everything that is wrong, in the order of reading."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", environment.model_name):
        return [f"{MODEL_NAME} is {environment.model_name!r}; set it to the model's name: letters, digits, '.', '_' and '-'."]
    return [
        *_model_directory(environment, variables),
        *_server_config(environment, is_custom=_is_custom(environment.model_directory)),
        *_temporary_directory(environment.temporary_directory),
        *_java(variables),
        *_devices(variables),
    ]


def find_java(variables: Mapping[str, str]) -> str | None:
    """Return the JVM's path: JAVA_HOME's, else the first on PATH, as TorchServe's own launcher does."""
    home = variables.get("JAVA_HOME")
    return shutil.which(f"{home}/bin/java" if home else "java", path=variables.get("PATH"))


def _model_directory(environment: Environment, variables: Mapping[str, str]) -> Iterator[str]:
    directory = environment.model_directory
    if not directory.is_dir():
        yield f"{directory}: no such directory; mount the rendered model directory there."
        return
    yield from _manifest(directory / MANIFEST, environment.model_name)
    try:
        config = yaml.safe_load((directory / MODEL_CONFIG).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        yield f"reading {directory / MODEL_CONFIG}: {' '.join(str(error).split())}."
        return
    if not isinstance(config, dict):
        yield f"{directory / MODEL_CONFIG}: must be a mapping, or TorchServe starts one whole model per CPU."
        return
    yield from _model_config(config)
    if "custom" in config:
        yield from _custom(config, directory)
        return
    try:
        settings = Settings.from_model_config(environment.model_name, directory, config)
    except SettingsError as error:
        yield str(error)
        return
    except (TypeError, AttributeError):
        yield f"{MODEL_CONFIG}: torchrun and deepspeed must be mappings."
        return
    local_size = variables.get("LOCAL_SIZE")
    if settings.device == "cpu" and settings.ranks > 1 and local_size != str(settings.ranks):
        told = f"LOCAL_SIZE is {local_size or 'not set'}"
        yield f"{told}; set it to the number of ranks, {settings.ranks}, as DeepSpeed's CPU all-reduce crashes without it."


def _is_custom(directory: Path) -> bool:
    """Whether the handler named is the one that calls a user's own."""
    try:
        return bool(json.loads((directory / MANIFEST).read_text())["model"]["handler"] == CUSTOM_HANDLER)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _custom(config: Mapping[str, Any], directory: Path) -> Iterator[str]:
    """Check what a user's handler is called by, and that its source is there when it is a file."""
    custom = config["custom"]
    handler = custom.get("handler") if isinstance(custom, dict) else None
    if not isinstance(handler, str) or not handler:
        yield f"{MODEL_CONFIG}: custom.handler is missing; it names the handler to call."
    elif handler.partition(":")[0].endswith(".py") and not (directory / handler.partition(":")[0]).is_file():
        yield f"{directory / handler.partition(':')[0]}: no such file; correct spec.handler, or put the file there."


def _manifest(path: Path, model_name: str) -> Iterator[str]:
    try:
        model = json.loads(path.read_text())["model"]
        values = {key: model.get(key) for key in ("modelName", "configFile", "handler")}
    except (OSError, ValueError) as error:
        yield f"reading {path}: {error}."
        return
    except (KeyError, TypeError, AttributeError):
        yield f"{path}: `model` must be an object with modelName, handler and configFile."
        return
    for key, wanted in (("modelName", model_name), ("configFile", MODEL_CONFIG)):
        if values[key] != wanted:
            yield f"{path}: model.{key} is {values[key]!r}, must be {wanted!r}."
    if not isinstance(values["handler"], str) or not values["handler"]:
        yield f"{path}: model.handler is missing, must be {HANDLER!r}."


def _model_config(config: Mapping[str, Any]) -> Iterator[str]:
    """Check the keys the frontend reads that our transport and our failure handling stand on."""
    transport = () if "custom" in config else (("continuousBatching", True),)
    for key, wanted in (*transport, ("maxRetryTimeoutInSec", 0), ("minWorkers", 1), ("maxWorkers", 1)):
        value = config.get(key)
        if type(value) is not type(wanted) or value != wanted:
            yield f"{MODEL_CONFIG}: {key} is {_yaml(value)}, must be {_yaml(wanted)}."
    torchrun = config.get("torchrun")
    if torchrun is None and config.get("parallelType") is None:
        return
    if torchrun is None and config["parallelType"] == "custom":
        if config.get("parallelLevel") != 1:
            yield f"{MODEL_CONFIG}: parallelLevel is {_yaml(config.get('parallelLevel'))}, must be 1: the frontend feeds one process."
        return
    if not isinstance(torchrun, dict) or config.get("parallelType") not in ("tp", "pp", "pptp"):
        yield f"{MODEL_CONFIG}: torchrun and parallelType: tp, pp or pptp go together; one without the other starts no ranks."
        return
    if torchrun.get("nnodes", 1) != 1:
        yield f"{MODEL_CONFIG}: torchrun.nnodes is {torchrun['nnodes']}, must be 1; TorchServe cannot feed ranks of another node."
    if not (Path(sys.executable).parent / "torchrun").exists():
        yield f"{Path(sys.executable).parent / 'torchrun'}: not found; the frontend starts the ranks with it."


def _server_config(environment: Environment, *, is_custom: bool) -> Iterator[str]:
    path = environment.server_config
    try:
        values = properties.read(path)
    except (OSError, ValueError) as error:
        yield f"reading {path}: {error}."
        return
    for key in properties.DEFAULT_ADDRESSES:
        try:
            properties.address(values, key)
        except ValueError as error:
            yield str(error)
    for key, wanted in {**(CUSTOM_PROPERTIES if is_custom else NEEDED_PROPERTIES), "load_models": environment.model_name}.items():
        if values.get(key) != wanted:
            yield f"{path.name}: {key} is {values.get(key, 'missing')}, must be {wanted}."


def _temporary_directory(path: Path) -> Iterator[str]:
    if not (path.is_dir() and os.access(path, os.W_OK | os.X_OK)):
        yield f"{TEMPORARY_DIRECTORY}={path}: no writable directory; mount one."
    longest = len(os.fsencode(path / ".ts.sock.29500"))
    if longest > LONGEST_SOCKET_PATH_BYTES:
        yield f"{TEMPORARY_DIRECTORY}={path}: too long for local sockets by {longest - LONGEST_SOCKET_PATH_BYTES} bytes."


def _java(variables: Mapping[str, str]) -> Iterator[str]:
    java = find_java(variables)
    if java is None:
        yield f"java: not found in JAVA_HOME or on PATH; install version {OLDEST_JAVA} or later."
        return
    try:
        told = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True).stderr
    except (OSError, subprocess.SubprocessError) as error:
        yield f"{java} -version: {error}."
        return
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < OLDEST_JAVA:
        yield f"{java}: version {version[1] if version else 'unknown'}; TorchServe needs {OLDEST_JAVA} or later."


def _devices(variables: Mapping[str, str]) -> Iterator[str]:
    visible = variables.get("CUDA_VISIBLE_DEVICES", "")
    if re.search(r"(GPU|MIG)-", visible):
        yield f"CUDA_VISIBLE_DEVICES is {visible}; the frontend ends on anything but numbers, so leave it to the device plugin."


def _yaml(value: object) -> str:
    return "missing" if value is None else json.dumps(value, default=str)
