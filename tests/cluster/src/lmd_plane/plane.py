"""One control plane in one folder: start it, let its parts fail, end it."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from lmd_plane import janitor, processes
from lmd_plane.audit import AuditLog
from lmd_plane.certificates import Authority, kubeconfig
from lmd_plane.client import Api, eventually
from lmd_plane.components import ARGUMENTS, LOOPBACK, NODE_LEASES, SERVER_NAMES, USERS, Site, egress, fake_node
from lmd_plane.errors import PlaneError
from lmd_plane.ports import free_ports
from lmd_plane.processes import Identity

START_SECONDS = 180.0
"""To the first answer of the API server on a busy machine; three seconds on an idle one."""
_STATE = "plane.json"
_ATTEMPTS = 3
"""Ports are free when they are chosen, not when they are bound; another process may be faster."""


class Cluster:
    """A cluster that can be reached, whoever started it."""

    def __init__(self, admin_kubeconfig: Path) -> None:
        self.kubeconfig = admin_kubeconfig
        self.api = Api(admin_kubeconfig)

    def add_nodes(self, count: int) -> None:
        """Have this many fake nodes of eight GPUs, gpu-0 and up, and wait until they are Ready. None is removed."""
        names = {node["metadata"]["name"] for node in self.api.get("/api/v1/nodes")["items"]}
        wanted = [fake_node(index) for index in range(count) if f"gpu-{index}" not in names]
        for node in wanted:
            self.api.create("/api/v1/nodes", node)

        def all_ready() -> bool:
            nodes = {node["metadata"]["name"]: node for node in self.api.get("/api/v1/nodes")["items"]}
            return all(_is_ready(nodes.get(f"gpu-{index}", {})) for index in range(count))

        eventually(all_ready, f"{count} Ready nodes", seconds=START_SECONDS)


class Plane(Cluster):
    """A control plane of ours, whose parts can be paused, killed and started again."""

    def __init__(self, site: Site, binaries: Mapping[str, Path], running: dict[str, Identity]) -> None:
        super().__init__(site.kubeconfig("admin"))
        self.site = site
        self.binaries = MappingProxyType(dict(binaries))
        self.audit = AuditLog(site.audit_log, self.api)
        self._running = running

    @classmethod
    def up(cls, folder: Path, binaries: Mapping[str, Path]) -> Plane:
        """Start a control plane in an empty folder and wait until pods can be created.

        Raises `PlaneError` with the last words of whatever did not start; nothing is left then.
        """
        if (folder / _STATE).exists():
            raise PlaneError(f"there is a control plane in {folder} already: take it down first")
        if folder.exists() and any(folder.iterdir()):
            raise PlaneError(f"{folder} is not empty: choose a folder that can be removed with the control plane")
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return cls._started(folder, binaries)
            except PlaneError as error:
                processes.sweep(folder)
                if "address already in use" not in str(error) or attempt == _ATTEMPTS:
                    raise
            except BaseException:
                processes.sweep(folder)
                raise
        raise AssertionError("unreachable")

    @classmethod
    def _started(cls, folder: Path, binaries: Mapping[str, Path]) -> Plane:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        site = Site(folder, *free_ports(3))
        _write_credentials(site)
        site.egress_config.write_text(egress(site))
        plane = cls(site, binaries, {})
        plane._save()
        for component in ARGUMENTS:
            plane.start(component)

        def account() -> bool:
            plane._require_running("kube-controller-manager")
            return plane.api.request("GET", "/api/v1/namespaces/default/serviceaccounts/default").status == 200

        eventually(account, "default service account", seconds=START_SECONDS)
        for component in ARGUMENTS:
            plane._require_running(component)
        return plane

    @classmethod
    def load(cls, folder: Path) -> Plane:
        """Return the plane that lives in a folder. Raises `PlaneError` when there is none."""
        path = folder / _STATE
        if not path.exists():
            raise PlaneError(f"there is no control plane in {folder}: start one with `up`")
        state = json.loads(path.read_text())
        running = {name: Identity(**identity) for name, identity in state["components"].items()}
        return cls(Site(folder, **state["ports"]), {name: Path(text) for name, text in state["binaries"].items()}, running)

    @staticmethod
    def down(folder: Path) -> None:
        """End every process of the plane in a folder and remove the folder; nothing there is fine.

        Raises `PlaneError` for a folder that holds something else.
        """
        if folder.exists() and any(folder.iterdir()) and not (folder / _STATE).exists():
            raise PlaneError(f"{folder} holds no control plane: it stays as it is")
        processes.sweep(folder)

    def start(self, component: str) -> None:
        """Start a component that does not run, on the same port with the same data, and wait until it answers."""
        if self.identity(component) is not None:
            raise PlaneError(f"{component} runs already")
        if component == "kwok":  # each run of it is another holder, and leases of the last one would have to expire first
            self.api.delete(NODE_LEASES)
        program = str(self.binaries[component])
        command = [program, *ARGUMENTS[component](self.site)]
        self._running[component] = processes.start(command, log=self.site.log(component), folder=self.site.folder)
        self._save()
        self.wait_for(component)

    def kill(self, component: str) -> None:
        """End a component at once, as a crash would."""
        if process := self._process(component):
            processes.end([process])

    def restart(self, component: str) -> None:
        """Kill a component, start it again and wait until it answers."""
        self.kill(component)
        self.start(component)

    def pause(self, component: str) -> None:
        """Stop a component where it stands: its connections stay open and silent."""
        processes.pause(self._require_process(component))

    def resume(self, component: str) -> None:
        """Let a paused component go on."""
        self._require_process(component).resume()

    @contextmanager
    def paused(self, component: str) -> Iterator[None]:
        """Keep a component paused inside the block."""
        self.pause(component)
        try:
            yield
        finally:
            self.resume(component)

    @contextmanager
    def killed(self, component: str) -> Iterator[None]:
        """Keep a component dead inside the block; it is started again and answers after it."""
        self.kill(component)
        try:
            yield
        finally:
            self.start(component)

    def identity(self, component: str) -> Identity | None:
        """Return the process of a component, None while it does not run. Raises `PlaneError` for an unknown one."""
        return self._running[component] if self._process(component) else None

    def wait_for(self, component: str) -> None:
        """Wait until a component answers; the ones without a port are taken to answer once they run."""
        match component:
            case "etcd":
                self._eventually(component, lambda: _accepts(self.site.etcd_port))
            case "kube-apiserver":
                self._eventually(component, lambda: self.api.request("GET", "/readyz").status == 200)

    def _eventually(self, component: str, probe: Callable[[], bool]) -> None:
        def answers() -> bool:
            self._require_running(component)
            return probe()

        eventually(answers, f"answer of {component}", seconds=START_SECONDS)

    def _require_running(self, component: str) -> None:
        if self.identity(component) is None:
            words = self.site.log(component).read_text(errors="replace").splitlines()[-8:]
            raise PlaneError("\n".join([f"{component} ended:", *words]))

    def _process(self, component: str) -> psutil.Process | None:
        if component not in ARGUMENTS:
            raise PlaneError(f"there is no component {component}: choose from {', '.join(ARGUMENTS)}")
        identity = self._running.get(component)
        return identity.process() if identity else None

    def _require_process(self, component: str) -> psutil.Process:
        process = self._process(component)
        if process is None:
            raise PlaneError(f"{component} does not run: start it first")
        return process

    def _save(self) -> None:
        ports = {name: getattr(self.site, name) for name in ("etcd_port", "etcd_peer_port", "api_port")}
        state = {
            "ports": ports,
            "binaries": {name: str(path) for name, path in self.binaries.items()},
            "components": {name: asdict(identity) for name, identity in self._running.items()},
        }
        partial = self.site.folder / f"{_STATE}.part"
        partial.write_text(json.dumps(state))
        partial.replace(self.site.folder / _STATE)


@contextmanager
def owned(binaries: Mapping[str, Path]) -> Iterator[Plane]:
    """Run a control plane in a temporary folder for the length of the block; a janitor ends it if we are killed."""
    folder = Path(tempfile.mkdtemp(prefix="lmd-plane-"))
    with janitor.start(folder) as keeper:
        try:
            yield Plane.up(folder, binaries)
        finally:
            processes.sweep(folder)
            if keeper.stdin:
                keeper.stdin.close()


def _write_credentials(site: Site) -> None:
    authority = Authority(site.pki)
    authority.issue("kube-apiserver", "/CN=kube-apiserver", SERVER_NAMES)
    authority.key_pair("service-accounts")
    for user, subject in USERS.items():
        path = site.kubeconfig(user)
        path.touch(mode=0o600)
        path.write_text(kubeconfig(site.api_url, authority.certificate, certificate=authority.issue(user, subject)))


def _accepts(port: int) -> bool:
    with socket.create_connection((LOOPBACK, port), timeout=1):
        return True


def _is_ready(node: dict[str, Any]) -> bool:
    conditions = node.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
