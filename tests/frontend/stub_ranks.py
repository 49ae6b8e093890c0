"""Stands where the frontend starts `torchrun` or Python: leaves its command line and environment, then acts as every rank.

The frontend wants one "Torch worker started." for each rank, a socket for each, and a reply to the load command.
Source: ts/model_service_worker.py and ts/protocol/otf_message_handler.py (torchserve 0.12.0), of which nothing is imported,
as that would import torch. Usage: `stub_ranks.py RECORD NAME ARGUMENTS...`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import struct
import sys
import threading
from pathlib import Path

LOADED = b"loaded"
REPLY = struct.pack("!ii", 200, len(LOADED)) + LOADED + struct.pack("!i", -1)


def leave_record(file: Path, arguments: list[str]) -> None:
    """Write at once what a reader may find at any moment."""
    record = {"arguments": arguments, "directory": os.getcwd(), "variables": dict(os.environ)}
    new = file.with_suffix(".new")
    new.write_text(json.dumps(record))
    new.replace(file)


def answer(listener: socket.socket) -> None:
    """Reply to the load command, then only listen until the frontend leaves."""
    connection, _ = listener.accept()
    with contextlib.suppress(OSError):
        if connection.recv(1 << 16):
            connection.sendall(REPLY)
        while connection.recv(1 << 16):
            pass


def main(file: Path, arguments: list[str]) -> None:
    leave_record(file, arguments)
    following = dict(itertools.pairwise(arguments))
    base, _, first = following["--sock-name"].rpartition(".")
    threads = []
    for rank in range(int(following.get("--nproc-per-node", "1"))):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{base}.{int(first) + rank}")
        listener.listen(1)
        threads.append(threading.Thread(target=answer, args=(listener,)))
        threads[-1].start()
        print("Torch worker started.", flush=True)
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
