"""The process that removes a plane when its owner ends, however it ended.

It waits until its standard input closes, which happens when the owner ends by any cause, SIGKILL included.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from lmd_plane.processes import MARK, sweep


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start a janitor for a folder; closing its standard input makes it clean up and end."""
    environment = {key: value for key, value in os.environ.items() if key != MARK} | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "lmd_plane.janitor", str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env=environment)


def main() -> None:
    """Wait for the owner to end, then clean up. Ctrl-C reaches the owner, not us: this is another session."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.buffer.read()
    sweep(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
