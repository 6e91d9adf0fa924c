"""Random crops of a source's images and masks, the same in any process and order."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from PIL import Image

from glocal.data.changed import ChangedSource
from glocal.data.source import ImageSource
from glocal.views.randomness import hash_seed, uniform_array

Range = tuple[float, float]


class Crop(NamedTuple):
    """A crop in pixels of its image, and whether it is mirrored afterwards."""

    left: int
    top: int
    width: int
    height: int
    mirrored: bool


Shares = Float[np.ndarray, "*draws"] | np.floating[Any]
"""One for every draw; of a single draw numpy makes a scalar."""


def crop_sides(
    uniform: Float[np.ndarray, "*draws numbers"], area: Range, aspect: Range
) -> tuple[Shares, Shares]:
    """(height, width) of random crops as shares of the sides: area uniform, aspect log-uniform, not yet cut to the image.

    The first two of the numbers of a draw are used.

    >>> crop_sides(np.array([1.0, 0.5]), (0.3, 1.0), (0.5, 2.0))
    (np.float64(1.0), np.float64(1.0))
    """
    share = area[0] + (area[1] - area[0]) * uniform[..., 0]
    ratio = np.exp(np.log(aspect[0]) + (np.log(aspect[1]) - np.log(aspect[0])) * uniform[..., 1])
    return np.sqrt(share / ratio), np.sqrt(share * ratio)


class RandomCrops(ChangedSource):
    """Each image cut to one random crop and perhaps mirrored, its mask likewise: a function of seed, round and place.

    One draw a crop, cut to the image, where the usual law of random resized crops tries ten times.

    Args:
        inner: the images, read at full size: a crop of a smaller decoding would lack detail.
        seed: same seed, same crops.
        round_: number of the epoch, pass or view; another one gives other crops.
        area: range of the share of the image's area.
        aspect: range of width over height.
        relative: aspect is relative to the image's own; else it is that of the crop's pixels.
        mirror: mirror half of the crops.
    """

    change = "random crops"

    def __init__(
        self,
        inner: ImageSource,
        seed: int,
        round_: int,
        area: Range,
        aspect: Range = (3 / 4, 4 / 3),
        relative: bool = True,
        mirror: bool = True,
    ) -> None:
        super().__init__(inner, seed, round_, *area, *aspect, relative, mirror)
        self._seeds, self._area, self._aspect = (seed, round_), area, aspect
        self._relative, self._mirror = relative, mirror

    def box(self, index: int, width: int, height: int) -> Crop:
        """Where the crop of an image of this size lies. Sides are cut to the image."""
        seed = np.array(hash_seed(*self._seeds, int(index))).astype(np.uint64)
        uniform = uniform_array(seed, 5)
        tall, wide = crop_sides(uniform, self._area, self._aspect)
        stretch = 1.0 if self._relative else (height / width) ** 0.5
        w = int(np.clip(round(width * float(wide) * stretch), 1, width))
        h = int(np.clip(round(height * float(tall) / stretch), 1, height))
        x, y, coin = uniform[2:].tolist()
        return Crop(int(x * (width - w + 1)), int(y * (height - h + 1)), w, h, self._mirror and coin < 0.5)

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Read an image and cut its crop."""
        image = self.inner.read(index)
        crop = self.box(index, image.width, image.height)
        image = image.crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.mirrored else image

    def read_mask(self, index: int) -> Integer[np.ndarray, "height width"]:
        """Read a mask and cut the same crop."""
        mask = self.inner.read_mask(index)
        crop = self.box(index, mask.shape[1], mask.shape[0])
        mask = mask[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        return np.ascontiguousarray(mask[:, ::-1] if crop.mirrored else mask)
