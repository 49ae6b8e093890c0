"""What a real node needs of this machine, besides what is built."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

PROGRAMS = {
    "buildah": "buildah",
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "nsenter": "util-linux",
    "runc": "runc",
    "unshare": "util-linux",
}
"""Programs by Debian's name of the package they are in."""
PLUGINS = Path("/usr/lib/cni")
NEEDED_PLUGINS = ("bridge", "host-local", "loopback")


def missing() -> str:
    """Return in one line why no node can run here, or nothing."""
    if os.geteuid() != 0:
        return "a real node needs root"
    packages = {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    if not all((PLUGINS / name).exists() for name in NEEDED_PLUGINS):
        packages.add("containernetworking-plugins")
    if packages:
        return f"a real node needs what is not installed: apt-get install {' '.join(sorted(packages))}"
    bridge = ["unshare", "--net", "--mount", "ip", "link", "add", "bridge0", "type", "bridge"]
    answer = subprocess.run(bridge, capture_output=True, text=True, check=False)
    return f"the kernel makes no network namespace with a bridge: {answer.stderr.strip()}" if answer.returncode else ""
