"""How a rank logs: our own lines from INFO on, everything else from WARNING on, each with its level and rank.

TorchServe reads a rank's standard output, so it adds the time. It logs two lines a step and rank at INFO itself, and its
metrics; these are what the root's level silences.
"""

from __future__ import annotations

import io
import logging
import sys


def configure(rank: int) -> None:
    """Set up logging of this process; call once, in a rank.

    What a handler prints is written line by line: all ranks have one standard output, and with PYTHONUNBUFFERED, as in the image, each
    argument of a `print` would be a write of its own, among those of other ranks.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, write_through=False)
    lines = logging.StreamHandler(sys.stdout)
    lines.setFormatter(logging.Formatter(f"%(levelname)s rank={rank} %(name)s: %(message)s"))
    ours = logging.getLogger("lmd_worker")
    ours.handlers = [lines]
    ours.setLevel(logging.INFO)
    ours.propagate = False
    logging.getLogger().setLevel(logging.WARNING)
