"""Images by key, and an encoder that sees thumbnails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from evaluation_fakes import SameAtEveryLayer, encoder_of_raw_pixels
from PIL import Image

from glocal.data.source import ImageSource
from glocal.errors import UnreadableImageError
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.models.features import Features

QUIET = Work(progress=False)


class Images(ImageSource):
    """Images in memory by key; None is one that can't be decoded."""

    def __init__(
        self, images: Mapping[str, np.ndarray | None], name: str = "images", labels: list[int] | None = None
    ) -> None:
        self.images, self.name, self.class_names = images, name, None
        self.labels = None if labels is None else np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        return list(self.images)[index]

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        pixels = self.images[self.key(index)]
        if pixels is None:
            raise UnreadableImageError(f"{self.key(index)} is broken")
        return Image.fromarray(pixels)

    def fingerprint(self) -> str:
        return "-".join([self.name, *self.images])

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageSource:
        keys = [self.key(int(i)) for i in indices]
        labels = None if self.labels is None else [int(self.labels[int(i)]) for i in indices]
        return Images({key: self.images[key] for key in keys}, self.name, labels)


class Thumbnail(SameAtEveryLayer):
    """Class token: the input's centred gray pixels. Patches: mean colour of each 4 px patch."""

    def forward(self, pixels: torch.Tensor) -> Features:
        gray = pixels.mean(1).flatten(1)
        patches = F.avg_pool2d(pixels, 4).flatten(2).transpose(1, 2)
        grid = (pixels.shape[2] // 4, pixels.shape[3] // 4)
        return Features(gray - gray.mean(1, keepdim=True), patches, grid, patches)


def thumbnail_encoder(size: int = 16) -> Encoder:
    return encoder_of_raw_pixels("thumbnail", Thumbnail(), size * size, 4, size)


def pictures(count: int, seed: int = 0, side: int = 16) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]
