"""The header of a safetensors file: bytes in, tensors out, or a refusal. Pure.

Format: 8 bytes of header length, little-endian, then that much JSON, then the tensors without gaps.
Source: the safetensors library's own rules (safetensors 0.8, `SafeTensors::read_metadata`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmd_worker.errors import FetchError

LENGTH_BYTES = 8
LARGEST_BYTES = 100_000_000
"""The limit of the safetensors library itself."""
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: its type's name, its shape and its bytes on disk."""

    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def header_length(first: bytes, file_size: int, name: str) -> int:
    """Return the length of the JSON in bytes. Raises `FetchError` when it cannot be true."""
    if len(first) < LENGTH_BYTES or file_size < LENGTH_BYTES:
        raise FetchError("WeightsTruncated", f"{name} has {file_size} bytes, which is no safetensors file.")
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    if length > LARGEST_BYTES:
        raise FetchError("SourceInvalid", f"{name} states a header of {length} bytes; safetensors allows at most {LARGEST_BYTES}.")
    if LENGTH_BYTES + length > file_size:
        raise FetchError("WeightsTruncated", f"{name} states a header of {length} bytes and has {file_size} in all.")
    return length


def tensors(header: bytes, file_size: int, name: str) -> dict[str, Tensor]:
    """Return the tensors of a header. Raises `FetchError` naming the tensor when types, shapes or offsets contradict each other."""
    try:
        document = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise FetchError("SourceInvalid", f"{name} has no readable safetensors header: {type(error).__name__}.") from error
    if not isinstance(document, dict):
        raise FetchError("SourceInvalid", f"{name} has a safetensors header that is no object.")
    found: dict[str, Tensor] = {}
    spans = []
    for tensor, entry in document.items():
        if tensor != "__metadata__":
            begin, end = _span(entry, f"{name}, tensor {tensor[:200]!a}")
            spans.append((begin, end))
            found[tensor] = Tensor(entry["dtype"], tuple(entry["shape"]), end - begin)
    _refuse_gaps(sorted(spans), file_size - LENGTH_BYTES - len(header), name)
    return found


def _span(entry: Any, where: str) -> tuple[int, int]:
    """Return where a tensor's bytes begin and end, counted from the end of the header."""
    if not isinstance(entry, Mapping):
        raise FetchError("SourceInvalid", f"{where}: its entry is no object.")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise FetchError("SourceInvalid", f"{where}: its type {ascii(dtype)[:40]} is none that safetensors knows.")
    if not _is_naturals(shape) or len(shape) > 64:
        raise FetchError("SourceInvalid", f"{where}: its shape is no list of sizes.")
    if not _is_naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FetchError("SourceInvalid", f"{where}: its offsets are no begin and end.")
    if math.prod(shape) * _BITS[dtype] != (offsets[1] - offsets[0]) * 8:
        raise FetchError("SourceInvalid", f"{where}: {offsets[1] - offsets[0]} bytes do not hold shape {list(shape)} of {dtype}.")
    return offsets[0], offsets[1]


def _is_naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _refuse_gaps(spans: list[tuple[int, int]], data_bytes: int, name: str) -> None:
    position = 0
    for begin, end in spans:
        if begin != position:
            raise FetchError("SourceInvalid", f"{name}: tensors overlap or leave a gap at byte {position} of the data.")
        position = end
    if position > data_bytes:
        raise FetchError("WeightsTruncated", f"{name} is cut short: its tensors need {position} bytes and it has {max(data_bytes, 0)}.")
    if position < data_bytes:
        raise FetchError("SourceInvalid", f"{name} has {data_bytes - position} bytes that belong to no tensor.")
