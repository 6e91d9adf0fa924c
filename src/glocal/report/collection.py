"""The images that a page shows: some of a collection, evenly chosen, as pictures and as thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from glocal.data import ImageSource
from glocal.errors import DataError, UnreadableImageError
from glocal.report.embedded import picture_uri, sheet

THUMBNAIL = 72
PICTURE = 336
LONGEST_NAME = 80


class Collection(NamedTuple):
    """Readable images: their names, classes in words where there are any, and their largest central squares."""

    source: str
    of: int
    """How many images the source has."""
    names: list[str]
    labels: list[str | None]
    squares: list[Image.Image]

    def pick(self, numbers: Sequence[int]) -> Collection:
        """Some of the images, in this order."""
        names, labels, squares = ([column[i] for i in numbers] for column in self[2:])
        return Collection(self.source, self.of, names, labels, squares)  # type: ignore[arg-type]

    def beside(self, other: Collection) -> Collection:
        """These images, then those of another collection."""
        return Collection(
            f"{self.source}, {other.source}", self.of + other.of, self.names + other.names,
            self.labels + other.labels, self.squares + other.squares,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Names, classes and one sheet of thumbnails."""
        thumbnails = sheet(self.squares, THUMBNAIL).to_json()
        return {"names": self.names, "labels": self.labels, "sheet": thumbnails, "of": self.of}

    def large(self) -> list[dict[str, Any]]:
        """Every image as the page shows it large, with its name and class."""
        return [
            {"name": name, "label": label, "picture": picture_uri(square)}
            for name, label, square in zip(self.names, self.labels, self.squares, strict=True)
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
        places.append(int(place))
    if not places:
        raise DataError(
            f"{source.name}: none of its {len(source)} images could be read; there is nothing to show."
        )
    names, labels = [_name(source, p) for p in places], [_label(source, p) for p in places]
    return Collection(source.name, len(source), names, labels, squares)


def central_square(image: Image.Image, most: int = PICTURE) -> Image.Image:
    """The largest central square, scaled down to `most` pixels where it is larger."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square if side <= most else square.resize((most, most), Image.Resampling.LANCZOS)


def _name(source: ImageSource, place: int) -> str:
    """What the source calls an image; its end when that is long."""
    key = source.key(place)
    return key if len(key) <= LONGEST_NAME else "…" + key[-LONGEST_NAME:]


def _label(source: ImageSource, place: int) -> str | None:
    if source.labels is None or source.labels[place] < 0:
        return None
    label, names = int(source.labels[place]), source.class_names
    return names[label] if names is not None and label < len(names) else str(label)
