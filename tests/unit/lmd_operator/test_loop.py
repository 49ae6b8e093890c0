"""The process' memory; its loop runs in the tests of the reliability suite."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
from pathlib import Path
from lmd_operator.runtime import loop

def resident_mib():
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")).split()[1]) >> 10

class Knot:
    def __init__(self):
        self.itself, self.content = self, bytes(12_000)

loop.collect_seldom()
before = resident_mib()
kept, held = [], []
for _ in range(8_000):
    kept.append(bytes(600))
    held.append(Knot())
held.clear()
full = resident_mib()
loop.give_back()
assert len(kept) == 8_000
print(full - before, resident_mib() - before)
"""


def test_what_a_storm_has_left_is_given_back_to_the_system() -> None:
    """Ninety MB in knots, each between two pieces that are still used, were held until the process ended."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    full, left = map(int, done.stdout.split())
    assert full > 80
    assert left < 50
