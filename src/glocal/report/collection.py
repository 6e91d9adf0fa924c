"""The images that a page shows: some of a collection, evenly chosen, as pictures and as thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from PIL import Image

from glocal.data import ImageSource
from glocal.errors import DataError, UnreadableImageError
from glocal.report.embedded import picture_uri, sheet

THUMBNAIL = 72
PICTURE = 336
LONGEST_NAME = 80


class Collection(NamedTuple):
    """Readable images of a source: their places in it and their largest central squares, at most 336 pixels wide."""

    source: ImageSource
    places: Int64[np.ndarray, " images"]
    squares: list[Image.Image]

    def pick(self, numbers: Sequence[int]) -> Collection:
        """Some of the images, in this order."""
        return Collection(self.source, self.places[list(numbers)], [self.squares[i] for i in numbers])

    def name(self, number: int) -> str:
        """What the source calls the image, its end when that is long."""
        key = self.source.key(int(self.places[number]))
        return key if len(key) <= LONGEST_NAME else "…" + key[-LONGEST_NAME:]

    def label(self, number: int) -> str | None:
        """The image's class in words; null without labels."""
        labels = self.source.labels
        if labels is None or labels[self.places[number]] < 0:
            return None
        label = int(labels[self.places[number]])
        names = self.source.class_names
        return names[label] if names is not None and label < len(names) else str(label)

    def to_json(self) -> dict[str, Any]:
        """Names, classes and one sheet of thumbnails."""
        count = range(len(self.places))
        return {
            "name": self.source.name,
            "names": [self.name(i) for i in count],
            "labels": [self.label(i) for i in count],
            "sheet": sheet(self.squares, THUMBNAIL).to_json(),
            "of": len(self.source),
        }

    def large(self) -> list[dict[str, Any]]:
        """Every image as the page shows it large, with its name and class."""
        return [
            {"name": self.name(i), "label": self.label(i), "picture": picture_uri(square)}
            for i, square in enumerate(self.squares)
        ]


def collect(source: ImageSource, most: int) -> Collection:
    """Decode at most `most` images, evenly over the source; unreadable ones are left out.

    Raises:
        DataError: when none can be read.
    """
    places, squares = [], []
    for place in np.unique(np.linspace(0, len(source) - 1, min(most, len(source))).astype(np.int64)):
        try:
            squares.append(central_square(source.read(int(place), at_least=PICTURE)))
        except UnreadableImageError:
            continue
        places.append(place)
    if not places:
        raise DataError(
            f"{source.name}: none of its {len(source)} images could be read; there is nothing to show."
        )
    return Collection(source, np.array(places, dtype=np.int64), squares)


def central_square(image: Image.Image, most: int = PICTURE) -> Image.Image:
    """The largest central square, scaled down to `most` pixels where it is larger."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square if side <= most else square.resize((most, most), Image.Resampling.LANCZOS)
