"""A source seen through a change of its images: cut, shrunk, checked."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Integer
from PIL import Image

from glocal.data.source import ImageSource, short_hash


class ChangedSource(ImageSource):
    """Another source's images, changed as they are read. A subclass overrides `read`, and `read_mask` where masks follow.

    Args:
        inner: the images.
        deciding: plain values that decide the change; sources of other values have another fingerprint.
    """

    change: ClassVar[str]
    """One word for the change, part of the fingerprint."""

    def __init__(self, inner: ImageSource, *deciding: Any) -> None:
        self.inner, self._deciding = inner, deciding
        self.name, self.split, self.has_masks = inner.name, inner.split, inner.has_masks
        self.labels, self.class_names = inner.labels, inner.class_names

    def __len__(self) -> int:
        """As many as the source has."""
        return len(self.inner)

    def key(self, index: int) -> str:
        """The original image's key."""
        return self.inner.key(index)

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Read an image unchanged."""
        return self.inner.read(index, at_least)

    def read_mask(self, index: int) -> Integer[np.ndarray, "height width"]:
        """Read a mask unchanged."""
        return self.inner.read_mask(index)

    def fingerprint(self) -> str:
        """The source's, with what decides the change."""
        return self._mixed(self.inner.fingerprint())

    def state(self) -> str:
        """The source's, with what decides the change."""
        return self._mixed(self.inner.state())

    def stamp(self, index: int) -> str:
        """The source's, with what decides the change."""
        return self._mixed(self.inner.stamp(index))

    def _mixed(self, print_of_source: str) -> str:
        return short_hash(print_of_source.encode(), self.change.encode(), repr(self._deciding).encode())
