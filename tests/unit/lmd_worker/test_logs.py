"""Lines of a rank, as they arrive in the standard output that all ranks share."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

PROGRAM = """
import logging
from lmd_worker import logs

logs.configure(3)
print("loss", 1.5, "step", 2)
logging.getLogger("lmd_worker.x").info("loaded")
"""


def test_what_is_printed_arrives_as_whole_lines_where_python_is_unbuffered() -> None:
    """Else lines of ranks that print at once are mixed word by word: each argument of a print is a write of its own."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        variables = {**os.environ, "PYTHONUNBUFFERED": "1"}
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=variables, stdout=theirs.fileno(), check=True)
        theirs.close()
        writes = []
        while data := ours.recv(1 << 16):
            writes.append(data.decode())
    assert done.returncode == 0
    assert writes == ["loss 1.5 step 2\n", "INFO rank=3 lmd_worker.x: loaded\n"]
