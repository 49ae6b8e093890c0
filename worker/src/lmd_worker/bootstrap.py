"""The container's command: check what is mounted, start what answers probes, then become the Java frontend, process 1.

TorchServe's own launcher stays in front of the JVM, ignores SIGTERM as process 1 and always ends with 0.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from lmd_worker import archives, lastwords, metrics, mounts, probe_server, rundir
from lmd_worker.environment import LOG_LOCATION, METRICS_LOCATION, TEMPORARY_DIRECTORY, Environment
from lmd_worker.errors import SettingsError

LOG_CONFIG = Path(__file__).with_name("log4j2.xml")

Execute = Callable[[str, list[str], Mapping[str, str]], object]
Answer = Callable[[str, Mapping[str, str]], object]


def serve(
    environment: Environment, variables: Mapping[str, str], execute: Execute = os.execvpe, answer: Answer = probe_server.start
) -> list[str]:
    """Replace this process by the frontend; return only with the problems that forbid it, also left as last words."""
    lastwords.clear(environment.termination_message_path)
    try:
        environment = archives.composed(environment)
    except SettingsError as error:
        problems = [str(error)]
    else:
        problems = mounts.problems(environment, variables)
    if not problems:
        problems = _enter(environment, variables, execute, answer)
    if problems:
        lastwords.write(environment.termination_message_path, " ".join(problems))
    return problems


def command(environment: Environment, java: str, empty_directory: Path) -> list[str]:
    """Return the frontend's command line; `-ncs` keeps snapshots from overriding the mounted configuration."""
    packages = site_packages()
    return [
        java,
        *shlex.split(environment.java_options),
        f"-Dlog4j.configurationFile={LOG_CONFIG.as_uri()}",
        f"-Djava.io.tmpdir={environment.temporary_directory}",
        f"-Dmodel_server_home={packages}",
        "-cp",
        f".:{packages}/ts/frontend/*",
        "org.pytorch.serve.ModelServer",
        "--python",
        sys.executable,
        "-f",
        str(environment.server_config),
        "-s",
        str(environment.model_store),
        "-w",
        str(empty_directory),
        "-ncs",
    ]


def process_variables(environment: Environment, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the frontend's environment, which its ranks inherit.

    Our Python comes first on PATH, where the frontend looks for torchrun. TS_CONFIG_FILE would win over `-f`.
    """
    kept = {name: value for name, value in variables.items() if name != "TS_CONFIG_FILE"}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}:{variables.get('PATH', os.defpath)}",
        TEMPORARY_DIRECTORY: str(environment.temporary_directory),
        LOG_LOCATION: str(environment.log_location),
        METRICS_LOCATION: str(environment.metrics_location),
    }


def site_packages() -> Path:
    """Return the directory that holds TorchServe; finds it without importing it.

    Raises `SettingsError` when it is not installed.
    """
    found = importlib.util.find_spec("ts")
    if found is None or not found.submodule_search_locations:
        raise SettingsError("torchserve is not installed beside lmd-worker; use the worker image.")
    return Path(found.submodule_search_locations[0]).parent


def _enter(environment: Environment, variables: Mapping[str, str], execute: Execute, answer: Answer) -> list[str]:
    java = mounts.find_java(variables)
    if java is None:
        return ["java: not found."]
    # Model names are looked up in the working directory first, and every file in the workflow store is a way in: both empty.
    empty = environment.run_directory / "empty"
    try:
        rundir.clear(environment.run_directory)
        metrics.write_config(site_packages() / "ts", environment.run_directory)
        for directory in (empty, environment.log_location, environment.metrics_location):
            directory.mkdir(parents=True, exist_ok=True)
        if any(empty.iterdir()):
            return [f"{empty}: must be empty; remove what is in it."]
        rundir.write_frontend(environment.run_directory, os.getpid())
        answer(environment.probes_address, variables)
        os.chdir(empty)
        execute(java, command(environment, java, empty), process_variables(environment, variables))
    except SettingsError as error:
        return [str(error)]
    except (OSError, ValueError) as error:
        return [f"starting the frontend: {error}."]
    return []
