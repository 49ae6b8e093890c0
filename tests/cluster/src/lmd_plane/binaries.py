"""The programs of the control plane, each built once from pinned Go modules and kept in the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lmd_plane.errors import PlaneError
from lmd_plane.go import go_command, required_version

MODULES = Path(__file__).parents[2] / "modules"
FLAGS = ("-trimpath", "-buildvcs=false", "-mod=readonly")
NICENESS = 10
"""Compiling takes minutes of every core; others go first."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Module:
    """One folder below `modules` with a go.mod and a go.sum, and what is built from it."""

    name: str
    packages: Mapping[str, str]
    """Package by name of its program."""
    ldflags: str = "-s -w"
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def folder(self) -> Path:
        """Where its go.mod lies."""
        return MODULES / self.name

    def fingerprint(self) -> str:
        """Return a short hash of everything that decides what is built."""
        digest = hashlib.sha256(repr((FLAGS, self.ldflags, self.environment, sorted(self.packages.items()))).encode())
        for name in ("go.mod", "go.sum", *sorted(path.name for path in self.folder.glob("*.go"))):
            digest.update((self.folder / name).read_bytes())
        return digest.hexdigest()[:16]


_KUBERNETES = "v1.36.3"
_VERSION = "k8s.io/component-base/version"
_KUBERNETES_FLAGS = (
    f"-s -w -X {_VERSION}.gitVersion={_KUBERNETES} -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=36 "
    f"-X {_VERSION}.gitTreeState=clean -X k8s.io/client-go/pkg/version.gitVersion={_KUBERNETES}"
)
_CONTAINERD = "github.com/containerd/containerd/v2"
_WITHOUT_C = (("CGO_ENABLED", "0"),)
ALL = (
    Module(
        "kubernetes",
        {name: f"k8s.io/kubernetes/cmd/{name}" for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")},
        ldflags=_KUBERNETES_FLAGS,
    ),
    Module(
        "node",  # beside "kubernetes", as most tests need no node and would have to build it
        {name: f"k8s.io/kubernetes/cmd/{name}" for name in ("kubelet", "kube-proxy")},
        ldflags=_KUBERNETES_FLAGS,
        environment=_WITHOUT_C,
    ),
    Module(
        "containerd",
        {name: f"{_CONTAINERD}/cmd/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")},
        ldflags=f"-s -w -X {_CONTAINERD}/version.Version=v2.4.2",
        environment=_WITHOUT_C,
    ),
    Module("pause", {"pause": "."}, environment=_WITHOUT_C),
    Module("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}, environment=_WITHOUT_C),
    Module("kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}, environment=_WITHOUT_C),
    Module("helm", {"helm": "helm.sh/helm/v4/cmd/helm"}, environment=_WITHOUT_C),
    Module("s3", {"versitygw": "github.com/versity/versitygw/cmd/versitygw"}, environment=_WITHOUT_C),
)
PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok", "kubectl")
"""What a running plane needs; helm is for the tests of the chart, the S3 server for those of the weights."""
NODE = ("kubelet", "kube-proxy", "containerd", "containerd-shim-runc-v2", "ctr", "pause")
"""What a real node needs besides."""


def cache_folder() -> Path:
    """Return where the programs are kept: `plane` below `$LMD_CACHE_DIR` or ~/.cache/lmd."""
    return Path(os.environ.get("LMD_CACHE_DIR", "~/.cache/lmd")).expanduser() / "plane"


def build(names: Iterable[str] = PLANE, *, say: Say, cache: Path | None = None) -> dict[str, Path]:
    """Return the path of each program, compiling what is not in the cache. Raises `PlaneError` when that fails."""
    cache = cache or cache_folder()
    return {name: _build(name, cache, say) for name in names}


def _build(name: str, cache: Path, say: Say) -> Path:
    module = next((module for module in ALL if name in module.packages), None)
    if module is None:
        raise PlaneError(f"there is no program {name}: choose from {', '.join(sorted(each for one in ALL for each in one.packages))}")
    folder = cache / f"{module.name}-{module.fingerprint()}" / "bin"
    program = folder / name
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name("lock"), lambda: say(f"{name}: waiting for another build")):
        if not program.exists():
            go = go_command(required_version(module.folder / "go.mod"), cache)
            say(f"{name}: building, minutes the first time")
            began = time.monotonic()
            _compile(go, module, name, program)
            say(f"{name}: built in {time.monotonic() - began:.0f} s, {program.stat().st_size / 1e6:.0f} MB")
    return program


def _compile(go: Path, module: Module, name: str, program: Path) -> None:
    for abandoned in program.parent.glob(f"{name}.*.part"):
        abandoned.unlink()
    partial = program.with_name(f"{name}.{os.getpid()}.part")
    command = ["nice", "-n", str(NICENESS), str(go), "build", *FLAGS, "-ldflags", module.ldflags, "-o", str(partial), module.packages[name]]
    environment = os.environ | {"GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": ""} | dict(module.environment)
    answer = subprocess.run(command, cwd=module.folder, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode:
        words = [line for line in answer.stderr.splitlines() if not line.startswith("go: downloading")]
        raise PlaneError("\n".join([f"building {name} failed with status {answer.returncode}:", *words[-20:]]))
    partial.replace(program)


@contextmanager
def _locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold a file lock, which the kernel gives back however the holder ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
