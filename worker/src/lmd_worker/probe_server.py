"""The process that answers the kubelet's probes over HTTP, beside the frontend from the container's start to its end.

    kubelet -- GET /livez  --> this process -- GET /ping ---------> TorchServe, on loopback
            -- GET /readyz -->              -- GET /models/NAME -->

A probe by command is a fresh interpreter every few seconds, in the midst of turns of ranks that need every core. `serve` opens the
listener, so that a port that is taken is refused in words, and hands it to this process before it becomes the frontend.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

from lmd_worker import probes
from lmd_worker.environment import PROBES_ADDRESS, Environment
from lmd_worker.errors import SettingsError

LOOKS = {"/livez": ("alive", probes.alive), "/readyz": ("ready", probes.ready)}
LAST_PORT = 2**16 - 1
PARENT_SECONDS = 0.5
"""How often this process looks whether the frontend is still there; it ends with it."""
REQUEST_SECONDS = 5.0
"""How long one request may take to arrive."""


def start(address: str, variables: Mapping[str, str]) -> int:
    """Start the process that answers on HOST:PORT, on every address without a host, and return its id.

    The port is taken when this returns. Raises `SettingsError`.
    """
    try:
        listener = socket.create_server(_parsed(address))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{PROBES_ADDRESS} is {address!r}: {error}; give HOST:PORT, or :PORT, of a free port.") from error
    with listener:
        listener.set_inheritable(True)
        command = [sys.executable, "-P", "-m", "lmd_worker.probe_server", str(listener.fileno()), str(os.getpid())]
        return os.posix_spawn(sys.executable, command, variables)


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not 0 <= int(port) <= LAST_PORT:
        raise ValueError(f"ports are 0 to {LAST_PORT}")
    return host, int(port)


class ProbeServer(ThreadingHTTPServer):
    """Answers 200 or 503 with the finding's line, and says on standard error when a finding is another than before."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, parent: int, environment: Environment) -> None:
        super().__init__(listener.getsockname(), _Request, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self._environment = environment
        self._parent = parent
        self._told = dict.fromkeys(LOOKS, True)
        self._telling = threading.Lock()

    def service_actions(self) -> None:
        """End with the process that has become the frontend."""
        if os.getppid() != self._parent:
            sys.exit(0)

    def find(self, path: str) -> probes.Finding | None:
        """Return what a probe finds now, None where no probe is."""
        if path not in LOOKS:
            return None
        name, look = LOOKS[path]
        finding = look(self._environment)
        with self._telling:
            if finding.good != self._told[path]:
                self._told[path] = finding.good
                print(f"lmd-worker: {'' if finding.good else 'not '}{name}: {finding.line}", file=sys.stderr, flush=True)
        return finding


class _Request(BaseHTTPRequestHandler):
    timeout = REQUEST_SECONDS
    server_version = "lmd-worker"
    sys_version = ""

    def do_GET(self) -> None:
        finding = cast("ProbeServer", self.server).find(self.path)
        if finding is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        body = f"{finding.line}\n".encode()
        self.send_response(HTTPStatus.OK if finding.good else HTTPStatus.SERVICE_UNAVAILABLE)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: a probe comes every two seconds."""


def main() -> None:
    """Answer on the listener whose number is the first argument, until the parent, whose id is the second, has ended."""
    listener, parent = map(int, sys.argv[1:])
    ProbeServer(socket.socket(fileno=listener), parent, Environment.from_variables(os.environ)).serve_forever(PARENT_SECONDS)


if __name__ == "__main__":
    main()
