"""Decoded images of a source; those of a small set are decoded once and kept in memory that all workers share."""

from __future__ import annotations

import contextlib
import mmap
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int32, UInt8

if TYPE_CHECKING:
    from glocal.data import ImageSource

PAGE = 4096
KEEP_BYTES = 2 << 30
"""How much is kept unless told otherwise: CIFAR-10 takes 0.2 GB, ten thousand photographs of 256x192 pixels 1.5 GB."""


class DecodedImages:
    """Images of a source as bytes, each decoded once if it can be kept.

    Every image has a slot of its own, `keep_bytes` divided by their number; one that doesn't fit into its slot is
    decoded again each time. So there is nothing to allocate, lock or evict: two workers that decode the same image
    write the same bytes to the same place, and memory that no image has touched is never taken. The mapping is
    anonymous: it needs no room in /dev/shm or on disk, lives as long as this object, and cannot go stale. Processes
    forked from this one share it; a pickled copy (workers that are spawned) begins an empty one.

    The bytes are those that `source.read` gives, whether kept or not.

    >>> from glocal.data import open_source
    >>> DecodedImages(open_source("digits")).read(0).shape
    (8, 8, 3)
    """

    def __init__(
        self, source: ImageSource, at_least: int | None = None, keep_bytes: int = KEEP_BYTES
    ) -> None:
        """Reserve the slots; `at_least` is that of `ImageSource.read`, `keep_bytes=0` keeps nothing."""
        self.source, self.at_least, self.keep_bytes = source, at_least, keep_bytes
        # Whole pages, so that an image touches as few as possible. Sets of more than half a million images get none.
        slot = keep_bytes // max(1, len(source)) // PAGE * PAGE
        self._slots: UInt8[np.ndarray, "images slot"] | None = None
        if slot:
            # A machine that promises no memory it may lack refuses here, and then nothing is kept.
            with contextlib.suppress(OSError):
                sides: Int32[np.ndarray, "images 2"] = _zeros(len(source), 8).view(np.int32)
                self._slots, self._sides = _zeros(len(source), slot), sides

    def __len__(self) -> int:
        """How many images the source has."""
        return len(self.source)

    def read(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        """Return one image; not to be written to.

        Raises:
            UnreadableImageError: see `ImageSource.read`.
        """
        if self._slots is None:
            return self._decode(index)
        height, width = self._sides[index].tolist()
        if height:
            return self._slots[index, : 3 * height * width].reshape(height, width, 3)
        pixels = self._decode(index)
        if pixels.size <= self._slots.shape[1]:
            self._slots[index, : pixels.size] = pixels.reshape(-1)
            # Written last: another worker that sees a height finds the pixels there.
            self._sides[index] = pixels.shape[:2]
        return pixels

    def _decode(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        # np.array, not np.asarray: torch wants writable memory, and the copy out of Pillow is made either way.
        return np.array(self.source.read(index, self.at_least))

    def __reduce__(self) -> tuple[type[DecodedImages], tuple[ImageSource, int | None, int]]:
        """Pickle without the slots."""
        return DecodedImages, (self.source, self.at_least, self.keep_bytes)


def _zeros(rows: int, columns: int) -> UInt8[np.ndarray, "rows columns"]:
    """Bytes that forked processes share and that cost memory, by the page, only once written."""
    return np.frombuffer(mmap.mmap(-1, rows * columns), dtype=np.uint8).reshape(rows, columns)
