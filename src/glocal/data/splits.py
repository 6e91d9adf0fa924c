"""The names of splits: `train`, `val`, `test` and their usual spellings in folder and file names."""

from __future__ import annotations

import re

from glocal.errors import DataError, nearest_name

SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
ALL = "all"
_SPLIT_OF = {spelling: split for split, spellings in SPELLINGS.items() for spelling in spellings}


def check_split(split: str | None) -> str | None:
    """Return `train`, `val`, `test`, `all` or None for what was asked.

    Raises:
        DataError: for a name that is no split.

    >>> check_split("validation")
    'val'
    """
    if split is None or split == ALL:
        return split
    if split not in _SPLIT_OF:
        allowed = [*SPELLINGS, ALL]
        raise DataError(
            f"There is no split '{split}'.{nearest_name(split, allowed)} Allowed: {', '.join(allowed)}."
        )
    return _SPLIT_OF[split]


def split_of_folder(name: str) -> str | None:
    """Which split a folder's name means, if any; upper and lower case count the same.

    >>> split_of_folder("Validation")
    'val'
    """
    return _SPLIT_OF.get(name.lower())


def split_of_file(stem: str) -> str | None:
    """Which split a file's name begins with, if any: `train-00000-of-00001`, `test`, but not `trainable`.

    >>> split_of_file("validation-00003-of-00010")
    'val'
    """
    return _SPLIT_OF.get(re.split(r"[-_.\s]", stem.lower(), maxsplit=1)[0])
