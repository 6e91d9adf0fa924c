"""The one way to an image that can be read: where one can't, the next takes its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from glocal.data.source import ImageSource
from glocal.errors import DataError, UnreadableImageError

REPLACEMENTS = 32
ReadT = TypeVar("ReadT")


def first_readable(
    source: ImageSource,
    index: int,
    read: Callable[[int], ReadT],
    unreadable: list[tuple[str, str]] | None = None,
) -> tuple[int, ReadT]:
    """Read the first readable image from `index` on, wrapping round: its position, and what `read` made of it.

    Args:
        source: the images.
        index: where to begin.
        read: reads the image at a position, `source.read` or what builds on it.
        unreadable: takes (key, reason) of every image passed over.

    Raises:
        DataError: when 32 images in a row can't be decoded.

    >>> source = open_source("digits")
    >>> first_readable(source, 3, source.read)[0]
    3
    """
    attempts = min(REPLACEMENTS, len(source))
    reason = ""
    for attempt in range(attempts):
        position = (index + attempt) % len(source)
        try:
            return position, read(position)
        except UnreadableImageError as error:
            reason = str(error)
            if unreadable is not None:
                unreadable.append((source.key(position), reason))
    raise DataError(
        f"{attempts} images in a row of {source.name} can't be decoded, from '{source.key(index)}' on. "
        f"The last reason: {reason} Check the data, or leave these images out."
    )
