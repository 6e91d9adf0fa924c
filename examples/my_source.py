"""A source of one's own: `data=examples/my_source.py:Shapes`."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from glocal.data import ImageSource


class Shapes(ImageSource):
    """Discs and squares of random place and colour, drawn when they are asked for; the label says which."""

    splits = ("train", "test")

    def __init__(self, split: str | None) -> None:
        self.name, self.split = f"shapes/{split or 'train'}", split
        self._seed = 1 if split == "test" else 0
        self.class_names = ["disc", "square"]
        self.labels = np.arange(200, dtype=np.int64) % 2

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, index: int) -> str:
        """What listings call an image."""
        return f"{self.class_names[index % 2]}-{index}"

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Draw one; positions that there are none of are an IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has no image {index}.")
        random = np.random.default_rng([self._seed, index])
        ground, colour = (tuple(int(c) for c in random.integers(0, 256, 3)) for _ in range(2))
        left, top, side = (
            int(random.integers(2, 24)),
            int(random.integers(2, 24)),
            int(random.integers(12, 34)),
        )
        image = Image.new("RGB", (64, 64), ground)
        draw = ImageDraw.Draw(image)
        (draw.ellipse, draw.rectangle)[index % 2]((left, top, left + side, top + side), fill=colour)
        return image

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when the images do."""
        return f"{self._seed:04x}{len(self):012x}"
