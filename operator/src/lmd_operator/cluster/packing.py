"""Texts that resemble each other, kept small: each is compressed with an early one of them as its dictionary.

Children of one kind differ in names and few values. Of 14 KiB of JSON that four children of an object are, 0.7 KiB stay this
way and 5.3 KiB without a dictionary, in less time (zlib's level 1, crds/examples/smollm2.yaml).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

LEAST_SAMPLE_BYTES = 256
"""A shorter text, as of an object that has no status yet, has little in common with any other."""


@dataclass(frozen=True, slots=True)
class Packed:
    """One text, compressed. `sample` is what it was compressed with; all of one packer share it."""

    content: bytes
    sample: bytes

    def text(self) -> bytes:
        """Return the text."""
        inflater = zlib.decompressobj(zdict=self.sample) if self.sample else zlib.decompressobj()
        return inflater.decompress(self.content)


class Packer:
    """Packs texts of one sort; the first one that is long enough is the dictionary of all that follow."""

    def __init__(self) -> None:
        self._sample = b""

    def pack(self, text: bytes) -> Packed:
        """Return the text, compressed."""
        deflater = zlib.compressobj(level=1, zdict=self._sample) if self._sample else zlib.compressobj(level=1)
        packed = Packed(deflater.compress(text) + deflater.flush(), self._sample)
        if not self._sample and len(text) >= LEAST_SAMPLE_BYTES:
            self._sample = text
        return packed
