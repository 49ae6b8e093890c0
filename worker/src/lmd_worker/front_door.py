"""The front door's container: run HAProxy, and tell it what changes while it runs.

Two things change: the accepted API keys, when the mounted Secret does, and whether the pod drains, which is a file in the
run directory. HAProxy is told over its socket, so no connection is lost and nothing is restarted.
"""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lmd_worker import rundir
from lmd_worker.environment import Environment
from lmd_worker.haproxy import Haproxy, HaproxyError

CONFIG = "haproxy.cfg"
API_KEYS = "api-keys"
"""File of accepted hashes that haproxy.cfg names; in the run directory."""
POLL_SECONDS = 0.5
SIGNAL_STATUS = 128
"""Added to the number of the signal that ended a process, as a shell does."""


@dataclass(frozen=True, slots=True)
class Told:
    """What HAProxy knows."""

    draining: bool
    key_hashes: tuple[str, ...]


def serve(environment: Environment, program: str = "haproxy") -> int:
    """Run HAProxy until it ends, and return its status. SIGTERM ends it at once: the kubelet sends it after the worker's end."""
    run_directory = environment.run_directory
    run_directory.mkdir(parents=True, exist_ok=True)
    told = Told(draining=False, key_hashes=key_hashes(environment.api_keys_directory))
    _write_keys(run_directory / API_KEYS, told.key_hashes)
    try:
        process = subprocess.Popen([program, "-db", "-f", str(environment.config_directory / CONFIG)])
    except OSError as error:
        print(f"lmd-worker front-door: {program}: {error.strerror}.", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    haproxy = Haproxy(run_directory / rundir.FRONT_DOOR_SOCKET)
    while (status := _wait(process)) is None:
        wanted = Told(rundir.is_draining(run_directory), key_hashes(environment.api_keys_directory))
        if wanted != told and _tell(haproxy, told, wanted, run_directory / API_KEYS):
            told = wanted
    return status


def key_hashes(directory: Path | None) -> tuple[str, ...]:
    """Return the hash of every key in a mounted Secret: one a file, without white space around it; empty ones are none."""
    if directory is None:
        return ()
    files = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
    keys = {path.read_bytes().strip() for path in files} - {b""}
    return tuple(sorted(hashlib.sha256(key).hexdigest() for key in keys))


def _write_keys(path: Path, hashes: tuple[str, ...]) -> None:
    path.touch(mode=0o600)
    path.write_text("".join(f"{each}\n" for each in hashes))


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        status = process.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return None
    return SIGNAL_STATUS - status if status < 0 else status


def _tell(haproxy: Haproxy, told: Told, wanted: Told, keys_file: Path) -> bool:
    """Tell HAProxy what is different; return whether it knows now, else it is told again in a moment."""
    try:
        if wanted.draining != told.draining:
            haproxy.set_draining(draining=wanted.draining)
        if wanted.key_hashes != told.key_hashes:
            haproxy.replace_list(str(keys_file), wanted.key_hashes)
            print(f"lmd-worker front-door: {len(wanted.key_hashes)} API keys are accepted.", file=sys.stderr)
    except HaproxyError:
        return False
    return True
