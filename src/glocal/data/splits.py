"""What `data=` may say behind its place: a split, a filter on a column, no labels. And the names of splits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from glocal.errors import DataError, nearest_name

SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
ALL = "all"
DOWNLOAD = "download"
_SPLIT_OF = {spelling: split for split, spellings in SPELLINGS.items() for spelling in spellings}
_TRUTH = {"true": True, "false": False}


@dataclass(frozen=True)
class DataSpec:
    """`PLACE[:split][:column=value[,value]][:labels=false][:download]`, taken apart.

    >>> read_spec("pacs:test:domain=photo,sketch")
    DataSpec(place='pacs', split='test', columns={'domain': ('photo', 'sketch')}, labels=True, download=False)
    """

    place: str
    """A path, a pattern or a built-in name, as it was written."""
    split: str | None = None
    """`train`, `val`, `test` or `all`."""
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Only rows whose column holds one of these values, for every column named."""
    labels: bool = True
    """False: what could be read as labels (class folders, a label column) is left alone."""
    download: bool = False

    def narrowed(self, split: str | None) -> DataSpec:
        """The same with a split that the caller needs.

        Raises:
            DataError: when another one is written.
        """
        if split is None or split == self.split:
            return self
        if self.split is not None:
            raise DataError(
                f"data={self.place}:{self.split} names split '{self.split}', but '{split}' is wanted here."
            )
        return replace(self, split=split)


def read_spec(text: str) -> DataSpec:
    """Take apart what `data=` says. What exists as a path as it is written is that path, colons and all.

    Raises:
        DataError: for two splits, or a column without a value.
    """
    spec = DataSpec(text)
    while not _exists(spec.place):
        place, colon, option = spec.place.rpartition(":")
        if not colon or not place:
            break
        grown = _with_option(replace(spec, place=place), option)
        if grown is None:
            break
        spec = grown
    return spec


def _with_option(spec: DataSpec, option: str) -> DataSpec | None:
    """The specification with one more option, or None when these words are no option but the end of a path."""
    column, equals, value = option.partition("=")
    if equals and re.fullmatch(r"[\w.-]+", column):
        if not value:
            raise DataError(
                f"data={spec.place}:{option}: give the values to keep, {column}=value or {column}=one,two."
            )
        if column == "labels" and value in _TRUTH:
            return replace(spec, labels=_TRUTH[value])
        return replace(spec, columns={column: tuple(value.split(",")), **spec.columns})
    if option == DOWNLOAD:
        return replace(spec, download=True)
    if option != ALL and option not in _SPLIT_OF:
        return None
    if spec.split is not None:
        raise DataError(
            f"data={spec.place}:{option}:{spec.split} names two splits; name one of them, or all."
        )
    return replace(spec, split=check_split(option))


def _exists(place: str) -> bool:
    try:
        return Path(place).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, a home that nobody has
        return False


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
