"""The operator's image: how large it is, and what its process holds at rest."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from lmd_plane.binaries import PLANE, build
from lmd_plane.client import eventually
from lmd_plane.node import requirements
from lmd_plane.plane import Plane, owned

from lmd_operator.version import VERSION

pytestmark = pytest.mark.node

ROOT = Path(__file__).parents[2]
IMAGE = f"lmd-operator:{VERSION}"
REQUIREMENTS = ROOT / "images" / "operator" / "requirements.txt"
LARGEST_MIB = 150
MOST_MEMORY_MIB = 90
MIB = 2**20
REST_SECONDS = 20


@pytest.fixture(scope="module")
def container() -> Iterator[str]:
    reason = requirements.missing()
    if reason:
        pytest.skip(reason)
    subprocess.run([str(ROOT / "images" / "build"), "operator"], env={**os.environ, "ENGINE": "buildah"}, check=True)
    name = subprocess.run(["buildah", "from", IMAGE], capture_output=True, text=True, check=True).stdout.strip()
    yield name
    subprocess.run(["buildah", "rm", name], capture_output=True, check=True)


@pytest.fixture
def plane() -> Iterator[Plane]:
    with owned(build(PLANE, say=lambda words: print(words, file=sys.__stderr__, flush=True))) as plane:
        yield plane


def test_what_the_image_holds_and_came_from_is_written_beside_it(container: str) -> None:
    files = ROOT / "build" / "images"
    statement = json.loads((files / f"lmd-operator-{VERSION}.provenance.json").read_text())
    digest = subprocess.run(
        ["buildah", "inspect", "--type", "image", "--format", "{{.FromImageDigest}}", IMAGE], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert statement["subject"] == [{"name": IMAGE, "digest": {"sha256": digest.removeprefix("sha256:")}}]
    sources = {each["name"]: each["digest"] for each in statement["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert sources["images/operator/requirements.txt"] == {"sha256": hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()}
    assert len(sources["source"]["gitCommit"]) == 40
    listed = json.loads((files / f"lmd-operator-{VERSION}.spdx.json").read_text())["packages"]
    held = {(package["name"].lower().replace("_", "-"), package.get("versionInfo")) for package in listed}
    locked = {tuple(line.split(" ")[0].split("==")) for line in REQUIREMENTS.read_text().splitlines() if "==" in line}
    assert locked - held == set()
    assert {"libc6", "python3.11-minimal"} <= {name for name, _ in held}


def test_the_operator_s_image_is_small_and_so_is_its_process(container: str, plane: Plane, free_port: int, tmp_path: Path) -> None:
    described = json.loads(subprocess.run(["buildah", "inspect", "--type", "image", IMAGE], capture_output=True, check=True).stdout)
    labels = described["OCIv1"]["config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == VERSION
    mounted = Path(subprocess.run(["buildah", "mount", container], capture_output=True, text=True, check=True).stdout.strip())
    size = sum(path.lstat().st_size for path in mounted.rglob("*") if not path.is_dir())
    assert not (mounted / "bin" / "sh").exists()
    assert size < LARGEST_MIB * MIB

    access = tmp_path / "kubeconfig"
    access.write_text(plane.kubeconfig.read_text())
    access.chmod(0o644)  # the image's user reads it
    run = ["buildah", "run", "--isolation", "chroot", "--network", "host", "--volume", f"{access}:/kubeconfig:ro"]
    run += ["--env=KUBECONFIG=/kubeconfig", "--env=LMD_OPERATOR_LEASE_NAMESPACE=default", f"--env=LMD_OPERATOR_PORT={free_port}"]
    definition = (ROOT / "crds" / "largemodel.dev_largemodeldeployments.yaml").read_text()
    subprocess.run(
        [str(plane.binaries["kubectl"]), "--kubeconfig", str(plane.kubeconfig), "apply", "--filename", "-"],
        input=definition,
        text=True,
        check=True,
    )
    log = tmp_path / "operator.log"
    with log.open("w") as words:
        command = [*run, container, "--", "/opt/lmd/bin/python", "-m", "lmd_operator"]
        process = subprocess.Popen(command, stdout=words, stderr=words, start_new_session=True)
    try:

        def leader() -> psutil.Process | None:
            lease = plane.api.request("GET", "/apis/coordination.k8s.io/v1/namespaces/default/leases/lmd-operator")
            family = psutil.Process(process.pid).children(recursive=True)
            found = [each for each in family if each.cmdline()[:1] == ["/opt/lmd/bin/python"]]
            return found[-1] if lease.status == 200 and found else None

        operator = eventually(leader, "operator that leads", seconds=120)
        time.sleep(REST_SECONDS)  # what it holds at rest, not while it starts
        assert "WARNING" not in log.read_text(), log.read_text()
        held = operator.memory_info().rss
        print(f"image {size / MIB:.0f} MiB, process {held / MIB:.0f} MiB")
        assert held < MOST_MEMORY_MIB * MIB
    finally:
        for each in psutil.Process(process.pid).children(recursive=True):
            each.kill()
        process.kill()
        process.wait()
