"""Random crops of a source's images as a source: for alignment and fine-tuning, the same in any process and order."""

from __future__ import annotations

import torch
from PIL import Image

from glocal.data.source import ImageSource
from glocal.errors import DataError
from glocal.views.randomness import hash_seed, uniforms


class RandomCrops(ImageSource):
    """A source's images, each cut to one random crop and perhaps mirrored: a function of seed, view and image number.

    Random resized crops with an aspect of 3/4 to 4/3 (one draw, cut to the image, where the usual law tries ten times).
    """

    def __init__(
        self, source: ImageSource, seed: int, view: int, area: tuple[float, float], mirror: bool = True
    ) -> None:
        self.name, self.labels, self.class_names = source.name, source.labels, source.class_names
        self._source, self._seed, self._view, self._area, self._mirror = source, seed, view, area, mirror

    def __len__(self) -> int:
        return len(self._source)

    def key(self, index: int) -> str:
        """The original image's key."""
        return self._source.key(index)

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Read and cut. Decoded whole: a crop of a smaller decoding would lack detail."""
        image = self._source.read(index)
        seed = torch.tensor([hash_seed(self._seed, self._view, int(index))])
        area, aspect, top, left, mirror = uniforms(seed, 5)[0].tolist()
        low, high = self._area
        pixels = (low + (high - low) * area) * image.width * image.height
        ratio = (3 / 4) ** (1 - 2 * aspect)
        width = max(1, min(image.width, round((pixels * ratio) ** 0.5)))
        height = max(1, min(image.height, round((pixels / ratio) ** 0.5)))
        x, y = int(left * (image.width - width + 1)), int(top * (image.height - height + 1))
        cut = image.crop((x, y, x + width, y + height))
        return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self._mirror and mirror < 0.5 else cut

    def fingerprint(self) -> str:
        """The source's, with what decides the crops."""
        deciding = (self._source.fingerprint(), "crops", self._seed, self._view, *self._area, self._mirror)
        return "-".join(map(str, deciding))

    def subset(self, indices: object) -> ImageSource:
        """Not offered: a crop depends on the image's number, which a subset would change."""
        raise DataError("Choose the images first, then crop them.")
