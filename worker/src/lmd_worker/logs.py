"""How a rank logs: our own lines from INFO on, everything else from WARNING on, each with its level and rank.

TorchServe reads a rank's standard output, so it adds the time. It logs two lines a step and rank at INFO itself, and its
metrics; these are what the root's level silences.
"""

from __future__ import annotations

import logging
import sys


def configure(rank: int) -> None:
    """Set up logging of this process; call once, in a rank."""
    lines = logging.StreamHandler(sys.stdout)
    lines.setFormatter(logging.Formatter(f"%(levelname)s rank={rank} %(name)s: %(message)s"))
    ours = logging.getLogger("lmd_worker")
    ours.handlers = [lines]
    ours.setLevel(logging.INFO)
    ours.propagate = False
    logging.getLogger().setLevel(logging.WARNING)
