"""Images with class masks, whatever their layout: a parquet or folder source with masks, VOC, ADE20K or Cityscapes.

Masks leave this file in one form: bytes, class ids from 0, and 255 for every pixel that is not scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from glocal.data.changed import ChangedSource
from glocal.data.source import ImageSource
from glocal.errors import ConfigError, DataError, UnreadableImageError
from glocal.evaluation.base import DataLike, open_split
from glocal.evaluation.segmentation.metrics import IGNORED
from glocal.evaluation.segmentation.paired_folders import class_names_beside, open_paired_folders

TRAIN = ("train",)
TEST = ("test", "val")
"""Names of the splits to learn from and to score on, in order of preference."""


class MaskLayout(NamedTuple):
    """What the values of a data set's masks mean."""

    class_names: tuple[str, ...]
    values: tuple[int, ...]
    """The mask value of each class; all others are ignored."""
    objects: tuple[int, ...]
    """Classes (ids, not mask values) whose connected regions are objects, for discovery."""


def _named(
    names: str, first: int = 0, objects: Sequence[int] = (), values: Sequence[int] | None = None
) -> MaskLayout:
    split = tuple(names.split(", "))
    return MaskLayout(split, tuple(values or range(first, first + len(split))), tuple(objects))


LAYOUTS: dict[str, MaskLayout] = {
    "camvid": _named(
        "sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist",
        objects=(8, 9, 10),
    ),
    "voc": _named(
        "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, dog, horse, "
        "motorbike, person, potted plant, sheep, sofa, train, tv",
        objects=range(1, 21),
    ),
    "ade20k": _named(", ".join(f"class {i}" for i in range(1, 151)), first=1),
    "cityscapes": _named(
        "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
        "rider, car, truck, bus, train, motorcycle, bicycle",
        values=(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
        objects=range(11, 19),
    ),
}
"""Known mask layouts. `camvid` is recognised by the word in a source's name, the others by folders and file names."""


@dataclass(frozen=True)
class SegmentationData:
    """Images and their masks, brought to class ids."""

    source: ImageSource
    class_names: tuple[str, ...]
    lookup: UInt8[np.ndarray, "values=256"]
    """Mask value to class id, 255 for what is ignored."""
    objects: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.source)

    @property
    def num_classes(self) -> int:
        """Number of scored classes."""
        return len(self.class_names)

    def mask(self, index: int) -> UInt8[np.ndarray, "h w"]:
        """Read one mask as class ids, 255 where ignored.

        Raises:
            DataError: when the mask is no single-channel map of values 0 to 255.
        """
        return self.classes_of(self.source.read_mask(index), index)

    def classes_of(self, raw: NDArray[Any], index: int) -> UInt8[np.ndarray, "h w"]:
        """Map raw mask values to class ids."""
        if raw.ndim != 2 or raw.dtype.kind not in "uib":
            raise DataError(
                f"The mask of {self.source.key(index)} has shape {raw.shape} and type {raw.dtype}; one whole number a "
                "pixel is needed. Colour-coded masks must be converted to class ids first."
            )
        if raw.size and (raw.min() < 0 or raw.max() > 255):
            raise DataError(
                f"The mask of {self.source.key(index)} holds {raw.min()} to {raw.max()}; allowed: 0..255."
            )
        mapped: np.ndarray = self.lookup[raw]
        return mapped

    def checked(self) -> SegmentationData:
        """Refuse images whose mask has another size when they are read, so that they are skipped, counted and named."""
        return replace(self, source=CheckedSource(self.source))


def open_segmentation(
    data: DataLike, *names: str, ignore: Sequence[int] | None = None, num_classes: int | None = None
) -> SegmentationData:
    """Open the first of the splits `names` that the data has, with its masks.

    Args:
        data: a path (VOC, ADE20K or Cityscapes folders, or anything `open_source` reads), or sources by split.
        names: splits in order of preference.
        ignore: mask values left out besides 255; null: what the known layout says, else none.
        num_classes: classes of an unknown layout; null: one more than the highest value in this split's masks.

    Raises:
        DataError: when there is no such split or no masks.
        ConfigError: when every class is ignored.
    """
    source: ImageSource | None = None
    layout: MaskLayout | None = None
    if not isinstance(data, Mapping):
        result = open_paired_folders(Path(data), names)
        if result is not None:
            source, layout = result[0], None if result[1] is None else LAYOUTS[result[1]]
            source.class_names = source.class_names if result[1] else class_names_beside(result[0].root)
            source.split = next((name for name in names if name in result[0].name.split("/")), None)
    if source is None:
        source = open_split(data, *names)
        layout = LAYOUTS["camvid"] if "camvid" in source.name.lower() else None
    if not source.has_masks:
        raise DataError(
            f"{source.name} has no masks. Dense protocols need a parquet with a `mask` column, folders images/ and "
            "masks/, or folders in the VOC, ADE20K or Cityscapes layout."
        )
    if layout is None or num_classes is not None:
        layout = _plain_layout(source, num_classes, layout)
    return _build(source, layout, set(ignore) if ignore is not None else set())


def open_train_and_test(
    data: DataLike, ignore: Sequence[int] | None = None, num_classes: int | None = None
) -> tuple[SegmentationData, SegmentationData]:
    """Open the training split and the one to be scored (`test`, else `val`), with the same classes.

    For an unknown layout the number of classes is the larger of the two splits': a class may be absent in either.

    Raises:
        DataError: when a split or its masks are missing.
    """
    pair = [
        open_segmentation(data, *names, ignore=ignore, num_classes=num_classes) for names in (TRAIN, TEST)
    ]
    if pair[0].num_classes != pair[1].num_classes:
        most = max(int(np.flatnonzero(split.lookup != IGNORED).max()) + 1 for split in pair)
        pair = [open_segmentation(data, *names, ignore=ignore, num_classes=most) for names in (TRAIN, TEST)]
    return pair[0], pair[1]


def _plain_layout(source: ImageSource, num_classes: int | None, known: MaskLayout | None) -> MaskLayout:
    if num_classes is None:
        highest = (int(values.max()) for mask in _masks(source) if (values := mask[mask != IGNORED]).size)
        num_classes = 1 + max(highest, default=0)
    given = source.class_names or []
    names = known.class_names if known and len(known.class_names) == num_classes else given[:num_classes]
    return MaskLayout(
        tuple(names if len(names) == num_classes else map(str, range(num_classes))),
        tuple(range(num_classes)),
        tuple(range(1, num_classes)),
    )


def _masks(source: ImageSource) -> Any:
    return (source.read_mask(index) for index in range(len(source)))


def _build(source: ImageSource, layout: MaskLayout, ignore: set[int]) -> SegmentationData:
    kept = [i for i, value in enumerate(layout.values) if value not in ignore]
    if not kept:
        raise ConfigError(
            f"ignore={sorted(ignore)} leaves no class of {source.name} to score. Ignore fewer values."
        )
    lookup = np.full(256, IGNORED, np.uint8)
    for number, place in enumerate(kept):
        lookup[layout.values[place]] = number
    objects = tuple(number for number, place in enumerate(kept) if place in layout.objects)
    return SegmentationData(source, tuple(layout.class_names[place] for place in kept), lookup, objects)


class CheckedSource(ChangedSource):
    """A source that refuses an image whose mask is unreadable or of another size. Images are decoded at full size."""

    change = "checked"

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Read an image; a mask that doesn't fit makes it unreadable, which callers count and name."""
        image = self.inner.read(index)
        shape = self.inner.read_mask(index).shape[:2]
        if shape != (image.height, image.width):
            raise UnreadableImageError(
                f"its mask is {shape[1]}x{shape[0]} pixels, the image {image.width}x{image.height}. "
                "Export masks at the size of their images."
            )
        return image
