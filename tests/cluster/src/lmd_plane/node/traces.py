"""What a node leaves on its machine outside its folder, and taking it back.

The kubelet sets a few kernel values for the whole machine and makes a control group for pods in every hierarchy; containers
leave mounts.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path

KERNEL = Path("/proc/sys")
KERNEL_VALUES = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")
"""Source: kubelet's `--protect-kernel-defaults`, which is off."""
CONTROL_GROUPS = Path("/sys/fs/cgroup")
POD_LINKS = Path("/var/log/containers")
_FILE = "kernel.json"


def remember(folder: Path) -> None:
    """Write down the kernel's values before a kubelet changes them."""
    values = {name: (KERNEL / name).read_text().strip() for name in KERNEL_VALUES if (KERNEL / name).exists()}
    (folder / _FILE).write_text(json.dumps(values))


def undo(folder: Path) -> None:
    """Take away what a node in this folder left; its processes have ended. Nothing there is fine."""
    if (folder / _FILE).exists():
        for name, value in json.loads((folder / _FILE).read_text()).items():
            (KERNEL / name).write_text(value)
    _unmount_below(folder)
    for pods in [*CONTROL_GROUPS.glob("kubepods"), *CONTROL_GROUPS.glob("*/kubepods")]:
        for group in sorted(pods.rglob("*/"), key=lambda path: len(path.parts), reverse=True):
            _remove(group)
        _remove(pods)
    for link in POD_LINKS.glob("*.log"):
        if link.is_symlink() and str(folder) in str(link.readlink()):
            link.unlink()


def _remove(group: Path) -> None:
    """Remove a control group unless it is in use, by another node perhaps."""
    with contextlib.suppress(OSError):
        group.rmdir()


def _unmount_below(folder: Path) -> None:
    """Unmount what containers had mounted; inner mounts come later in the list than outer ones."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed([point for point in points if point.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)
