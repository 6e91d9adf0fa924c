"""What a set of images is like, looked at before anything is trained on it."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from glocal.data.source import ImageSource
from glocal.errors import DataError, UnreadableImageError

THUMBNAIL = 16
NEAR = 4.0
"""Mean difference of two 16x16 grey thumbnails, in levels of 255, below which two images count as near duplicates."""


@dataclass(frozen=True)
class Inspection:
    """What was found among `looked_at` of `images` images, spread evenly over the source."""

    images: int
    looked_at: int
    unreadable: list[str]
    """The reasons, which name the images."""
    sides: tuple[int, int, int]
    """Smallest, median and largest shorter side in pixels."""
    grey: int
    """Images whose three channels are equal."""
    exact_duplicates: int
    """Images whose pixels are those of an earlier one."""
    near_duplicates: int
    """Further images whose thumbnail is near an earlier one's."""
    images_per_second: float
    """Decoded by one process."""


def inspect(source: ImageSource, most: int = 400) -> Inspection:
    """Read up to `most` images and compare them with each other.

    Raises:
        DataError: when none can be read.

    >>> inspect(open_source("digits"), most=50).sides
    (8, 8, 8)
    """
    chosen = np.unique(np.linspace(0, len(source) - 1, min(most, len(source))).astype(int))
    sides, grey, unreadable = [], 0, []
    hashes: list[bytes] = []
    thumbnails: list[np.ndarray] = []
    reading = 0.0
    for index in chosen.tolist():
        before = time.perf_counter()
        try:
            image = source.read(index)
        except UnreadableImageError as error:
            unreadable.append(str(error))
            continue
        finally:
            reading += time.perf_counter() - before
        pixels = np.asarray(image)
        sides.append(min(image.size))
        grey += bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())
        hashes.append(hashlib.sha256(f"{image.size}".encode() + pixels.tobytes()).digest())
        small = image.convert("L").resize((THUMBNAIL, THUMBNAIL), reducing_gap=2.0)
        thumbnails.append(np.asarray(small, dtype=np.float32).ravel())
    if not sides:
        raise DataError(
            f"None of {len(chosen)} images of {source.name} can be read. The first: {unreadable[0]}"
        )
    exact, near = _duplicates(hashes, np.stack(thumbnails))
    ordered = sorted(sides)
    rate = len(chosen) / max(reading, 1e-9)
    return Inspection(
        len(source),
        len(chosen),
        unreadable,
        (ordered[0], ordered[len(ordered) // 2], ordered[-1]),
        grey,
        exact,
        near,
        rate,
    )


def _duplicates(hashes: list[bytes], thumbnails: Float[np.ndarray, "images pixels"]) -> tuple[int, int]:
    """(exact, near): images whose pixels an earlier one has, and further ones whose thumbnail is near an earlier one's."""
    exact = near = 0
    seen: set[bytes] = set()
    for index, digest in enumerate(hashes):
        if digest in seen:
            exact += 1
        elif index and np.abs(thumbnails[:index] - thumbnails[index]).mean(1).min() < NEAR:
            near += 1
        seen.add(digest)
    return exact, near
