"""One real node of one control plane: start it, give it images, look inside it. It ends with the plane's folder."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil

from lmd_plane import processes
from lmd_plane.certificates import Authority, kubeconfig
from lmd_plane.client import eventually
from lmd_plane.errors import OverdueError, PlaneError
from lmd_plane.node import config, network, requirements, traces
from lmd_plane.node.config import NODE_ADDRESS, NODE_NAME, PAUSE_IMAGE, NodeSite
from lmd_plane.plane import Plane
from lmd_plane.processes import Identity

START_SECONDS = 120.0

Result = TypeVar("Result")


class Node:
    """A node that runs pods. Its clients must be inside its network: see `inside`."""

    def __init__(self, plane: Plane, binaries: Mapping[str, Path], keeper: Identity) -> None:
        self.plane = plane
        self.site = NodeSite(plane.site.folder / processes.NODE)
        self._binaries = binaries
        self._keeper = keeper

    @classmethod
    def up(cls, plane: Plane, binaries: Mapping[str, Path], packages: Path | None = None) -> Node:
        """Start a node and wait until it is Ready.

        `packages` is a folder of Python packages that every container finds where images without packages expect them.
        Raises `PlaneError` with the last words of what did not start, or why no node can run here.
        """
        reason = requirements.missing()
        if reason:
            raise PlaneError(reason)
        site = NodeSite(plane.site.folder / processes.NODE)
        for name in ("cni", "logs", "kubelet"):
            site.path(name).mkdir(parents=True)
        traces.remember(site.folder)
        keeper = processes.start(
            [_program("unshare"), "--net", _program("sh"), "-c", config.namespace_commands()],
            log=site.path("namespace.log"),
            folder=plane.site.folder,
        )
        node = cls(plane, binaries, keeper)
        node._wait(lambda: _has_address(keeper.pid), "network namespace", "namespace")
        node._write(packages)
        node._start()
        return node

    @property
    def namespace_pid(self) -> int:
        """A process inside the node's network."""
        return self._keeper.pid

    def inside(self, work: Callable[[], Result]) -> Result:
        """Do work inside the node's network, where Services and pods can be reached."""
        return network.inside(self._keeper.pid, work)

    def load(self, image: str, name: str = "") -> None:
        """Bring an image of this machine's buildah to the node, under another name if one is given."""
        name = name or image
        name = name if "/" in name else f"docker.io/library/{name}"
        push = ["buildah", "push", "--quiet", image, f"docker-archive:/dev/stdout:{name}"]
        with subprocess.Popen(push, stdout=subprocess.PIPE) as pushing:
            self.ctr("images", "import", "--local", "-", given=pushing.stdout)
        if pushing.returncode:
            raise PlaneError(f"buildah has no image {image}: build it with images/build")

    def offer_volumes(self, count: int) -> None:
        """Have this many empty volumes of the default storage class, for a claim each."""
        self.plane.api.create("/apis/storage.k8s.io/v1/storageclasses", config.storage_class())
        for index in range(count):
            folder = self.site.path("volumes") / str(index)
            folder.mkdir(parents=True)
            document = config.volume(f"{NODE_NAME}-{index}", folder, "10Gi", ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"])
            self.plane.api.create("/api/v1/persistentvolumes", document)

    def ctr(self, *arguments: str, given: Any = None) -> str:
        """Run containerd's own client; return what it says."""
        command = [str(self._binaries["ctr"]), "--address", str(self.site.socket), "--namespace", "k8s.io", *arguments]
        answer = subprocess.run(command, stdin=given, capture_output=True, text=True, check=False)
        if answer.returncode:
            raise PlaneError(f"ctr {' '.join(arguments)}: {answer.stderr.strip()}")
        return answer.stdout

    def container_processes(self, pod_uid: str, container: str) -> list[psutil.Process]:
        """Return the running processes of a pod's container, the first of them its process 1."""
        for line in self.ctr("containers", "ls", "--quiet").splitlines():
            labels = json.loads(self.ctr("containers", "info", line))["Labels"]
            if (labels.get("io.kubernetes.pod.uid"), labels.get("io.kubernetes.container.name")) == (pod_uid, container):
                found = _task_pid(self.ctr("tasks", "ls"), line)
                if found:
                    first = psutil.Process(found)
                    return [first, *first.children(recursive=True)]
        return []

    def log(self, namespace: str, pod: str, container: str) -> str:
        """Return everything that a container's incarnations said, without the time stamps."""
        files = sorted(self.site.path("logs").glob(f"{namespace}_{pod}_*/{container}/*.log"))
        lines = [line.split(" ", 3)[-1] for file in files for line in file.read_text(errors="replace").splitlines()]
        return "\n".join(lines)

    def _write(self, packages: Path | None) -> None:
        site, pki = self.site, self.plane.site.pki
        authority = Authority(pki)
        # what a node may do is not what these tests ask, so it is an administrator
        subject = f"/O=system:masters/CN=system:node:{NODE_NAME}"
        credentials = authority.issue("kubelet", subject, [f"DNS:{NODE_NAME}", f"IP:{NODE_ADDRESS}"])
        access = site.path("kubeconfig")
        access.touch(mode=0o600)
        access.write_text(kubeconfig(self.plane.site.api_url, authority.certificate, certificate=credentials))
        default = json.loads(subprocess.run([str(self._binaries["ctr"]), "oci", "spec"], capture_output=True, check=True).stdout)
        files_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        texts = {
            "cni/10-pods.conflist": config.network(site),
            "containerd.toml": config.containerd(site, requirements.PLUGINS, _program("runc")),
            "spec.json": config.runtime_spec(default, packages),
            "kubelet.yaml": config.kubelet(site, pki, files_limit),
            "kube-proxy.yaml": config.kube_proxy(access),
            "resolv.conf": "",
        }
        for name, text in texts.items():
            site.path(name).write_text(text)

    def _start(self) -> None:
        site = self.site
        relay = [str(self._keeper.pid), str(self.plane.site.api_port), str(self.plane.site.egress_socket)]
        sources = f"PYTHONPATH={Path(__file__).parents[2]}"
        self._run("relay", ["/usr/bin/env", sources, sys.executable, "-m", "lmd_plane.node.network", *relay], is_inside=False)
        shim_folder = self._binaries["containerd-shim-runc-v2"].parent
        path = f"PATH={shim_folder}:{os.environ.get('PATH', os.defpath)}"
        self._run("containerd", ["/usr/bin/env", path, str(self._binaries["containerd"]), "--config", str(site.path("containerd.toml"))])
        self._wait(self._has_containerd, "answer of containerd", "containerd")
        self._load_pause()
        kubelet = [f"--config={site.path('kubelet.yaml')}", f"--kubeconfig={site.path('kubeconfig')}", f"--root-dir={site.path('kubelet')}"]
        kubelet += [f"--cert-dir={site.path('kubelet') / 'pki'}", f"--hostname-override={NODE_NAME}", f"--node-ip={NODE_ADDRESS}"]
        self._run("kubelet", [str(self._binaries["kubelet"]), *kubelet])
        self._run("kube-proxy", [str(self._binaries["kube-proxy"]), f"--config={site.path('kube-proxy.yaml')}"])
        self._wait(self._is_ready, "Ready node", "kubelet")
        slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
        self.plane.api.create(slices, config.api_server_endpoints(self.plane.site.api_port))

    def _run(self, name: str, command: list[str], *, is_inside: bool = True) -> None:
        entered = [_program("nsenter"), f"--net=/proc/{self._keeper.pid}/ns/net", *command] if is_inside else command
        processes.start(entered, log=self.site.path(f"{name}.log"), folder=self.plane.site.folder)

    def _wait(self, condition: Callable[[], bool], what: str, log: str) -> None:
        try:
            eventually(condition, what, seconds=START_SECONDS)
        except OverdueError as error:
            words = self.site.path(f"{log}.log").read_text(errors="replace").splitlines()[-8:]
            raise PlaneError("\n".join([f"the node has no {what}:", *words])) from error

    def _load_pause(self) -> None:
        folder = self.site.path("pause")
        folder.mkdir()
        shutil.copy(self._binaries["pause"], folder / "pause")
        (folder / "Dockerfile").write_text('FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n')
        build = ["buildah", "build", "--quiet", "--format", "docker", "--tag", PAUSE_IMAGE, str(folder)]
        subprocess.run(build, check=True, capture_output=True)
        self.load(PAUSE_IMAGE)

    def _has_containerd(self) -> bool:
        try:
            return bool(self.ctr("version"))
        except PlaneError:
            return False

    def _is_ready(self) -> bool:
        answer = self.plane.api.request("GET", f"/api/v1/nodes/{NODE_NAME}")
        conditions = answer.body.get("status", {}).get("conditions", []) if answer.status == 200 else []
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise PlaneError(f"{name} is not installed")
    return found


def _has_address(pid: int) -> bool:
    return NODE_ADDRESS in network.inside(pid, lambda: Path("/proc/thread-self/net/fib_trie").read_text())


def _task_pid(listing: str, container: str) -> int:
    """Return the process of a running task in what `ctr tasks ls` prints, 0 if there is none."""
    rows = [line.split() for line in listing.splitlines()[1:]]
    return next((int(row[1]) for row in rows if row[0] == container and row[2] == "RUNNING"), 0)
