"""A model's tensors told shortly enough for a Job's last words: one line a kind of tensor instead of one a tensor. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from lmd_worker.weights.headers import Tensor

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def outline(tensors: Mapping[str, Tensor], layers: int) -> list[list[object]]:
    """Return [name with `*` for its numbers, type, dimensions, how many] of every kind of tensor, by name.

    Layers beyond the model's own predict several tokens at once; transformers does not load them, and they are left out.
    """
    kinds: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    for name, tensor in tensors.items():
        found = _LAYER.search(name)
        if found is None or int(found[1]) < layers:
            kinds[_NUMBER.sub("*", name), tensor.dtype, tensor.shape] += 1
    return [[name, dtype, list(shape), count] for (name, dtype, shape), count in sorted(kinds.items())]
