"""HAProxy's runtime commands over its local socket, as far as the front door and the drain need them.

Source: HAProxy 2.6 management guide, section 9.3. Imports little: the pre-stop hook starts a fresh interpreter.
"""

from __future__ import annotations

import csv
import socket
from collections.abc import Iterable
from pathlib import Path

BACKEND = "torchserve"
"""Named in haproxy.cfg, which the operator renders."""
TIMEOUT_SECONDS = 3.0
_BACKEND_ROWS = 2
_ALL_SERVERS = -1


class HaproxyError(Exception):
    """HAProxy was not reached, or did not understand."""


class Haproxy:
    """A running HAProxy, by its socket."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    def set_draining(self, *, draining: bool) -> None:
        """Have every answer end its connection from now on and the readiness probe fail, or the opposite."""
        self._ask(f"experimental-mode on; set var proc.draining int({int(draining)})")

    def replace_list(self, file: str, entries: Iterable[str]) -> None:
        """Replace what an access list read from `file`, at once for every request that comes after."""
        answer = self._ask(f"prepare acl {file}")
        version = answer.rpartition(":")[2].strip()
        if not version.isdigit():
            raise HaproxyError(f"HAProxy has no list {file}")
        for entry in entries:
            self._ask(f"add acl @{version} {file} {entry}")
        self._ask(f"commit acl @{version} {file}")

    def requests(self) -> int:
        """Return how many requests are answered or wait."""
        rows = list(csv.DictReader(self._ask(f"show stat {BACKEND} {_BACKEND_ROWS} {_ALL_SERVERS}").lstrip("# ").splitlines()))
        try:
            return int(rows[0]["scur"])
        except (IndexError, KeyError, ValueError) as error:
            raise HaproxyError(f"HAProxy has no backend {BACKEND}") from error

    def _ask(self, command: str) -> str:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(TIMEOUT_SECONDS)
                connection.connect(str(self._path))
                connection.sendall(f"{command}\n".encode())
                return b"".join(iter(lambda: connection.recv(65536), b"")).decode().strip()
        except OSError as error:
            raise HaproxyError(f"{self._path}: {error.strerror or error}") from error
