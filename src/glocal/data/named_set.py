"""What a set of images is that `data=` opens by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from glocal.data.source import ImageSource
from glocal.data.splits import ALL
from glocal.errors import DataError


@dataclass(frozen=True)
class NamedSet:
    """A set of images that needs no path; its file makes one, `named_sets.py` lists it.

    >>> NamedSet("digits", open_digits, splits=("train", "test")).opened("test").name
    'digits/test'
    """

    name: str
    """What `data=` says for it."""
    open: Callable[..., ImageSource]
    """Called with `split` where there are splits (null: the training images; it refuses one that it lacks), and with
    `download=True` where a person asked for that."""
    splits: tuple[str, ...] = ()
    """The splits that it has, in the order train, val, test."""
    can_be_fetched: bool = False
    """Whether `NAME:download` fetches what is not on this machine. Nothing is fetched unasked."""

    def opened(self, split: str | None, download: bool = False) -> ImageSource:
        """The images of a split, or of all.

        Raises:
            DataError: for a split that it doesn't have, or a download of what is here anyway; whatever opening raises.
        """
        if download and not self.can_be_fetched:
            raise DataError(f"{self.name} needs no download; write data={self.name}.")
        if not self.splits and split not in (None, ALL):
            raise DataError(f"{self.name} has no splits (asked for '{split}'). Leave the split out.")
        wanted = {"split": split} if self.splits else {}
        return self.open(**wanted, download=True) if download else self.open(**wanted)
