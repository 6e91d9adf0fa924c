"""What every image source offers: its length, keys, labels where there are any, and decoded images one at a time."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from jaxtyping import Int64, Integer, Shaped
from PIL import Image

from glocal.errors import DataError, nearest_name


class ImageSource(ABC):
    """Images by position, decoded on demand. Order is fixed: position `i` is the same image in every process.

    Sources go to worker processes, so they pickle and hold file names and labels in flat buffers: a million Python
    strings would be touched, hence copied, by every forked worker.

    >>> source = open_source("digits")
    >>> source.read(0).size
    (8, 8)
    """

    name: str
    """For people: `cifar10/train`, a folder's name."""
    labels: Int64[np.ndarray, " images"] | None = None
    """A class number for every image, -1 for one without; or None. Only probes and evaluation may look at it."""
    class_names: list[str] | None = None
    """The name of each class number, when known."""
    has_masks: bool = False
    """Whether `read_mask` works."""
    left_out: Mapping[str, int] = MappingProxyType({})
    """Files beside the images that are none, counted by ending."""
    split: str | None = None
    """Which split of its data set this is, where one was opened by name."""

    @abstractmethod
    def __len__(self) -> int:
        """How many images there are."""

    @abstractmethod
    def key(self, index: int) -> str:
        """Name one image in listings: a path relative to the source, or a row."""

    @abstractmethod
    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Decode one image to 8-bit RGB, upright.

        Args:
            index: its position, 0 to `len(self) - 1`.
            at_least: let the decoder return a smaller image whose shorter side is at least this many pixels. Only
                JPEG can (by 2, 4 or 8, several times faster); an image that is smaller already comes as it is.

        Raises:
            UnreadableImageError: when it can't be decoded; the text names the image and the reason.
        """

    def read_mask(self, index: int) -> Integer[np.ndarray, "height width"]:
        """Decode one segmentation mask: a class number for every pixel, never resized, never colour-converted.

        Raises:
            DataError: when the source has no masks.
            UnreadableImageError: when this one can't be decoded.
        """
        raise DataError(f"{self.name} has no masks. Use parquet files with a 'mask' column beside 'image'.")

    def columns(self) -> tuple[str, ...]:
        """Names that `column` takes: `label` where there are labels, and what the source keeps beside its images."""
        return () if self.labels is None else ("label",)

    def column(self, name: str) -> Shaped[np.ndarray, " images"]:
        """What stands beside every image in this column, as text; `label` gives class names, or numbers without any.

        Raises:
            DataError: when there is no such column; it names those there are.

        >>> open_source("digits", "test").column("label")[0]
        '2'
        """
        if name != "label" or self.labels is None:
            raise DataError(
                f"{self.name} has no column '{name}'.{nearest_name(name, self.columns())} "
                f"Columns: {', '.join(self.columns()) or 'none'}."
            )
        named = [*(self.class_names or map(str, range(int(self.labels.max(initial=-1)) + 1))), ""]
        return np.array(named).take(self.labels)  # -1 is the last: no label

    @abstractmethod
    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change when names, sizes or order of the contents change.

        The same for a copy on another machine; results are compared by it.
        """

    def state(self) -> str:
        """The fingerprint, and when each file was last written: what features kept on this machine depend on."""
        return self.fingerprint()

    def stamp(self, index: int) -> str:
        """Changes when this image may have; by default with any file of the source. What an index computes anew."""
        return self.state()

    def subset(self, indices: Sequence[int] | Int64[np.ndarray, " chosen"]) -> ImageSource:
        """Return a source of these images, in this order.

        Raises:
            DataError: for a position that the source does not have.
        """
        return Subset(self, np.asarray(indices, dtype=np.int64).reshape(-1))


class Subset(ImageSource):
    """Chosen images of another source; made by `ImageSource.subset`."""

    def __init__(self, source: ImageSource, indices: Int64[np.ndarray, " chosen"]) -> None:
        outside = indices[(indices < 0) | (indices >= len(source))]
        if len(outside):
            raise DataError(
                f"{source.name} has no image {outside[0]}; positions go from 0 to {len(source) - 1}."
            )
        self.name, self.class_names, self.has_masks = source.name, source.class_names, source.has_masks
        self.split = source.split
        self.labels = None if source.labels is None else source.labels[indices]
        # A subset of a subset points at the first source, so that chains of them cost nothing.
        self._source: ImageSource = source._source if isinstance(source, Subset) else source
        self._indices: Int64[np.ndarray, " chosen"] = (
            source._indices[indices] if isinstance(source, Subset) else indices
        )

    def __len__(self) -> int:
        """How many images were chosen."""
        return len(self._indices)

    def key(self, index: int) -> str:
        """Name one image as its source does."""
        return self._source.key(self._position(index))

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Decode one image (see `ImageSource.read`)."""
        return self._source.read(self._position(index), at_least)

    def read_mask(self, index: int) -> Integer[np.ndarray, "height width"]:
        """Decode one mask (see `ImageSource.read_mask`)."""
        return self._source.read_mask(self._position(index))

    def columns(self) -> tuple[str, ...]:
        """The columns of its source."""
        return self._source.columns()

    def column(self, name: str) -> Shaped[np.ndarray, " images"]:
        """One column of the chosen images."""
        return self._source.column(name).take(self._indices)

    def fingerprint(self) -> str:
        """Depends on the source and on the choice."""
        return short_hash(self._source.fingerprint().encode(), self._indices.tobytes())

    def state(self) -> str:
        """Depends on the source's files and on the choice."""
        return short_hash(self._source.state().encode(), self._indices.tobytes())

    def stamp(self, index: int) -> str:
        """That of its source."""
        return self._source.stamp(self._position(index))

    def _position(self, index: int) -> int:
        return int(self._indices[check_index(index, len(self), self.name)])


def hold_out(source: ImageSource, count: int, seed: int) -> tuple[ImageSource, ImageSource]:
    """Split a source into what is left and `count` images held out at random, each part in the source's order.

    The choice depends on the seed and the number of images only; every process draws the same.

    Raises:
        DataError: when `count` is negative or larger than the source.

    >>> rest, held_out = hold_out(open_source("digits"), 100, seed=0)
    >>> len(held_out)
    100
    """
    if not 0 <= count <= len(source):
        raise DataError(
            f"Can't hold out {count} of the {len(source)} images of {source.name}; allowed: 0 to all."
        )
    shuffled = np.random.default_rng(seed).permutation(len(source))
    return source.subset(np.sort(shuffled[count:])), source.subset(np.sort(shuffled[:count]))


def check_index(index: int, length: int, name: str) -> int:
    """Return `index` when 0 <= index < length; numpy and Arrow would read a negative one from the end.

    Raises:
        IndexError: otherwise.
    """
    if not 0 <= index < length:
        raise IndexError(f"{name} has no image {index}; positions go from 0 to {length - 1}.")
    return int(index)


def short_hash(*parts: bytes) -> str:
    """Hash parts (lengths included, so that boundaries count) to 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for content in parts:
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()[:16]
