"""Images that lie uncompressed in memory."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from glocal.data.source import ImageSource, check_index, short_hash
from glocal.errors import DataError


class ArraySource(ImageSource):
    """Small images in one uint8 array, grayscale (N, H, W) or RGB (N, H, W, 3).

    >>> source = ArraySource("noise", np.zeros((4, 8, 8), np.uint8))
    >>> source.read(3).mode
    'RGB'
    """

    def __init__(
        self,
        name: str,
        pixels: UInt8[np.ndarray, "images height width *channels"],
        labels: Int64[np.ndarray, " images"] | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        """Keep the array as it is, without a copy.

        Raises:
            DataError: for another shape or type, or labels of another length.
        """
        if pixels.dtype != np.uint8 or not (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[-1] == 3)):
            raise DataError(
                f"{name}: images must be uint8 (N, H, W) or (N, H, W, 3), got {pixels.dtype} {pixels.shape}."
            )
        if labels is not None and len(labels) != len(pixels):
            raise DataError(
                f"{name}: {len(pixels)} images and {len(labels)} labels; give one label an image."
            )
        self.name, self.labels, self.class_names = name, labels, class_names
        self._pixels = pixels

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._pixels)

    def key(self, index: int) -> str:
        """Return the source's name and the position."""
        return f"{self.name}#{check_index(index, len(self), self.name)}"

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Return one image; nothing is decoded, so `at_least` changes nothing."""
        return Image.fromarray(self._pixels[check_index(index, len(self), self.name)]).convert("RGB")

    def fingerprint(self) -> str:
        """Name, shape and all pixels: meant for arrays of a few megabytes."""
        return short_hash(
            self.name.encode(), str(self._pixels.shape).encode(), np.ascontiguousarray(self._pixels).tobytes()
        )
