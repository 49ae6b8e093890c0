"""How long the CPU ranks of a group take to add up what each has, as they do twice a layer, next to threads scheduled as usual.

Between two reductions every rank computes a little, like a layer that decodes one token. Prints milliseconds a reduction for each way
and their ratio; `ranks.join` takes the second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

import torch
import torch.distributed as dist

from lmd_worker import cores

HIDDEN, WIDE = 576, 1536
"""Of the example's model, SmolLM2-135M."""
REDUCTIONS = 400
WARM_UP = 20
WAYS = ("usual", "batch")


def measure(way: str) -> float:
    """Return milliseconds a reduction and the work before it."""
    if way == "batch":
        cores.wake_without_preempting()
    dist.init_process_group("gloo")
    one_token, weights, sums = torch.randn(1, HIDDEN), torch.randn(HIDDEN, WIDE), torch.zeros(HIDDEN)

    def work() -> None:
        for _ in range(3):
            one_token @ weights
        dist.all_reduce(sums)

    for _ in range(WARM_UP):
        work()
    dist.barrier()
    began = time.perf_counter()
    for _ in range(REDUCTIONS):
        work()
    seconds = time.perf_counter() - began
    dist.destroy_process_group()
    return seconds / REDUCTIONS * 1000


def started(way: str, size: int) -> float:
    """Return what rank 0 of so many ranks measures."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command = [*torchrun, "--nproc-per-node", str(size), __file__, "--way", way]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return float(ended.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3], metavar="N", help="sizes of the group (default: 2 3)")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way is not None:
        torch.set_num_threads(1)
        milliseconds = measure(options.way)
        if os.environ["RANK"] == "0":
            print(milliseconds)
        return 0
    print("ranks     usual     batch   ratio")
    for size in options.ranks:
        usual, batch = (started(way, size) for way in WAYS)
        print(f"{size:5} {usual:6.2f} ms {batch:6.2f} ms {usual / batch:7.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
