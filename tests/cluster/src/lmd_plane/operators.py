"""Operators under test: real processes, each with an account of its own, so that the audit log tells them apart."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

from lmd_plane import processes
from lmd_plane.audit import Entry
from lmd_plane.certificates import kubeconfig
from lmd_plane.client import Api, eventually
from lmd_plane.components import LOOPBACK
from lmd_plane.errors import PlaneError
from lmd_plane.faults import FaultProxy
from lmd_plane.faults.requests import WRITES
from lmd_plane.plane import Plane
from lmd_plane.ports import free_ports

READY_SECONDS = 120.0
_PR_SET_PDEATHSIG = 1
_ROOT = Path(__file__).parents[4]


class Operator:
    """One operator that looks after one namespace; it may be killed, paused and started again."""

    def __init__(self, name: str, namespace: str, access: Path, log: Path) -> None:
        self.name = name
        self.namespace = namespace
        self.user = f"system:serviceaccount:{namespace}:{name}"
        self.program = ("-m", "lmd_operator")
        self.launcher: tuple[str, ...] = ()
        self._access = access
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def pid(self) -> int:
        """The process. Raises `PlaneError` when it has ended, with its last words."""
        if self._process is None or self._process.poll() is not None:
            status = self._process.returncode if self._process else None
            raise PlaneError(f"{self.name} does not run: status={status}\n{self.words()[-3000:]}")
        return self._process.pid

    def start(self, *, is_ready: bool = True) -> None:
        """Start the process and, unless told otherwise, wait until it has filled its caches."""
        self._port = free_ports(1)[0]
        settings = {
            "HOST": LOOPBACK,
            "PORT": str(self._port),
            "NAMESPACES": self.namespace,
            "LEASE_NAMESPACE": self.namespace,
            "IDENTITY": self.name,
            "WORKERS": "8",
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith("LMD_OPERATOR_")}
        environment = kept | {f"LMD_OPERATOR_{key}": value for key, value in settings.items()} | {"KUBECONFIG": str(self._access)}
        with self._log.open("ab") as words:
            self._process = subprocess.Popen(
                [*self.launcher, sys.executable, *self.program],
                env=environment,
                stdout=words,
                stderr=words,
                preexec_fn=_die_with_parent,
                cwd=_ROOT,
            )
        if is_ready:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until its caches are filled. Raises `PlaneError` when it ends instead."""
        eventually(lambda: self.pid and self.scrape("readyz"), f"readiness of {self.name}", seconds=READY_SECONDS)

    def wait_leading(self, *, seconds: float = 60.0) -> float:
        """Wait until it leads; return how long that took, in seconds."""
        began = time.monotonic()
        eventually(lambda: self.pid and self.leads(), f"leadership of {self.name}", seconds=seconds)
        return time.monotonic() - began

    def leads(self) -> bool:
        """Whether it says that it leads."""
        return self.metric("lmd_operator_leader") == 1.0

    def metric(self, name: str) -> float | None:
        """Return one number of its metrics, None when it is not there."""
        lines = (line for line in self.scrape("metrics").splitlines() if line.startswith(f"{name} "))
        return next((float(line.split()[1]) for line in lines), None)

    def scrape(self, path: str) -> str:
        """Return what it answers, nothing unless it is a success."""
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self._port}/{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, OSError):
            return ""

    def words(self) -> str:
        """Return its log so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def kill(self) -> None:
        """End it at once, as a crash would; from any thread."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def terminate(self, *, seconds: float = 30.0) -> float:
        """Ask it to end as the kubelet does; return how long it took, in seconds."""
        began = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        assert self._process is not None
        status = self._process.wait(seconds)
        if status:
            raise PlaneError(f"{self.name} ended with status {status}\n{self.words()[-3000:]}")
        return time.monotonic() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keep it stopped where it stands inside the block."""
        process = psutil.Process(self.pid)
        processes.pause(process)
        try:
            yield
        finally:
            process.resume()

    def writes(self, plane: Plane, mark: int) -> list[Entry]:
        """Return what it wrote since a mark of the audit log; its lease and its Events are left out."""
        found = (entry for entry in plane.audit.since(mark) if entry.user == self.user and entry.verb in WRITES)
        return [entry for entry in found if entry.resource not in ("leases", "events") and "dryRun=" not in entry.path]


def enrol(plane: Plane, name: str, namespace: str, folder: Path, proxy: FaultProxy | None = None) -> Operator:
    """Return an operator with an account that may do everything in its namespace and nothing elsewhere; it is not started."""
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    plane.api.create(accounts, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    }
    plane.api.create(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings", binding)
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = plane.api.create(f"{accounts}/{name}/token", request)["status"]["token"]
    direct = folder / f"{name}.kubeconfig"
    direct.touch(mode=0o600)
    direct.write_text(kubeconfig(plane.site.api_url, plane.site.pki / "ca.crt", token=token))
    is_allowed = Api(direct)
    eventually(lambda: is_allowed.get(f"/api/v1/namespaces/{namespace}/pods"), f"rights of {name}")
    access = proxy.kubeconfig(token=token, name=name) if proxy else direct
    return Operator(name, namespace, access, folder / f"{name}.log")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
