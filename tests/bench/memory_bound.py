"""What a device's memory allows: a step of decoding reads the weights once and every stream's cache, as fast as a copy goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

COPIED_BYTES = {"cuda": 2**32, "cpu": 2**27}
COPIES = 9


def copy_bytes_per_second(device: str) -> int:
    """Return the bytes that a large copy reads and writes in a second, the median of some."""
    import torch

    source = torch.ones(COPIED_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    seconds = []
    for _ in range(COPIES):
        _wait(device)
        began = time.perf_counter()
        target.copy_(source)
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return round(2 * source.nbytes / statistics.median(seconds))


def bound(measured: Mapping[str, float], streams: int, tokens_before: float) -> dict[str, float]:
    """Return the most tokens a second and the least time between two of a stream, with so many tokens before each on average."""
    read = measured["weight_bytes"] + streams * tokens_before * measured["cache_bytes_per_token"]
    seconds = read / measured["copy_bytes_per_second"]
    return {"tokens_per_second": round(streams / seconds, 1), "itl_p50_ms": round(1000 * seconds, 3)}


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
