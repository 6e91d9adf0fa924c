"""Images named by a list file: one path a line, with a label beside it or not, or a table with a header."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from glocal.data.decoding import IMAGE_SUFFIXES
from glocal.data.folder import FileSource
from glocal.data.labels import Labels, number_texts
from glocal.data.splits import ALL, SPELLINGS, split_of_folder
from glocal.errors import DataError
from glocal.outside import reading

_PROBED = 16
_PATHS = ("path", "image", "file", "filename", "file_name", "image_path", "filepath")
_LABELS = ("label", "class", "class_name", "category", "target")
_CURE = "Every line is a path, or every line is path,label, or a header line names the columns; quote a path with a comma."


class ListSource(FileSource):
    """The images of a list file with their other columns."""

    def __init__(
        self, name: str, root: Path, paths: list[bytes], labels: Labels, beside: dict[str, list[str]]
    ) -> None:
        super().__init__(name, root, paths, *labels)
        # Arrays of text of one width: flat buffers, which forked workers share (see `ImageSource`).
        self._beside = {column: np.array(values) for column, values in beside.items()}

    def columns(self) -> tuple[str, ...]:
        """Those of the header but the path, and `label`."""
        return tuple(dict.fromkeys([*super().columns(), *self._beside]))

    def column(self, name: str) -> Shaped[np.ndarray, " images"]:
        """One column, as it is written."""
        return self._beside[name] if name in self._beside else super().column(name)


@dataclass
class ListFile:
    """A list file taken apart: column name to its values, a value an image."""

    path: Path
    columns: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> ListFile:
        """Read and check a list.

        Raises:
            DataError: when it can't be read, is empty, or mixes lines of different numbers of columns.
        """
        with reading(path, "a list file", cure="Write one path a line, or path,label."):
            text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
            rows = [(number, _row(line)) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        header = _header(rows[0][1]) if rows else None
        first, rows = (rows[0] if rows else (0, [])), rows[1:] if header else rows
        if not rows:
            raise DataError(f"The list '{path}' names no images. Write one path a line, or path,label.")
        names = header or ["path", "label"][: len(first[1])]
        for number, cells in rows:
            if (
                len(cells) != len(names)
                or not cells[names.index("path")]
                or "\0" in cells[names.index("path")]
            ):
                raise DataError(
                    f"{path}, line {number}: {_shown(cells)} has {len(cells)} columns, {len(names)} are expected "
                    f"({', '.join(names)}). {_CURE}"
                )
        return cls(path, {name: [cells[i] for _, cells in rows] for i, name in enumerate(names)})

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that a column `split` names, when every value of it is one."""
        named = {split_of_folder(value) for value in set(self.columns.get("split", ()))}
        return () if None in named else tuple(s for s in SPELLINGS if s in named)

    def of_split(self, split: str | None) -> ListFile:
        """The lines of one split; without one, those of `train` where there are splits.

        Raises:
            DataError: for a split that no line is of.
        """
        present = self.splits
        split = split or ("train" if "train" in present else ALL)
        if split == ALL:
            return self
        if split not in present:
            seen = (
                f"Its splits: {', '.join(present)}."
                if present
                else "A list file has splits when a header line names a column 'split'; or give one list a split."
            )
            raise DataError(f"'{self.path}' has no split '{split}'. {seen}")
        keep = [split_of_folder(value) == split for value in self.columns["split"]]
        kept = {
            name: [v for v, k in zip(values, keep, strict=True) if k] for name, values in self.columns.items()
        }
        return ListFile(self.path, kept)


def open_list(path: Path, split: str | None = None) -> ListSource:
    """Open a list file: one image path a line, `path,label`, or a csv whose header names its columns.

    A header has a column `path` (or image, file, filename), maybe `label` (or class), maybe `split`; by others a
    `data=list.csv:domain=photo` chooses. Paths are relative to the folder of the list, or absolute. Labels are whole
    numbers, taken as they are where they count classes from 0, or names, numbered in alphabetical order; an empty one
    is none. Order is that of the list. Blank lines count for nothing.

    Raises:
        DataError: when the list can't be read, is empty, has no such split, mixes lines with and without labels, or
            when none of its first images exists. Later ones that are missing are skipped and listed like any
            unreadable image.

    >>> len(open_list(Path("train.txt")))
    1000
    """
    whole = ListFile.read(path)
    columns = whole.of_split(split).columns
    labels: Labels = None, None
    if "label" in columns:
        # Classes are numbered over all splits, so that one missing from a split does not shift the others.
        _, names = number_texts(whole.columns["label"])
        labels = number_texts(columns["label"], names)
    beside = {name: values for name, values in columns.items() if name not in ("path", "label")}
    name = path.stem if split in (None, ALL) or not whole.splits else f"{path.stem}/{split}"
    source = ListSource(name, path.parent, [os.fsencode(text) for text in columns["path"]], labels, beside)
    probed = [source.path(i) for i in range(min(len(source), _PROBED))]
    if not any(os.path.exists(file) for file in probed):  # noqa: PTH110 (Path.exists raises for names that are too long)
        raise DataError(
            f"{path}: none of the first {len(probed)} images exists, for example {_shown([str(probed[0])])}. "
            f"Paths in the list are relative to its folder, '{path.parent}'."
        )
    return source


def _header(cells: list[str]) -> list[str] | None:
    """The columns that a first line names, path and label under these names; None when it is no header."""
    names = [cell.lower() for cell in cells]
    if not set(names) & set(_PATHS) or len(set(names)) < len(names):
        return None
    path = next(name for name in _PATHS if name in names)
    label = next((name for name in _LABELS if name in names), None)
    return ["path" if name == path else "label" if name == label else name for name in names]


def _row(line: str) -> list[str]:
    """Split one line; one that ends like an image file is a path, whatever commas it has."""
    line = line.strip()
    if "," not in line or (line.rpartition(".")[2].lower() in IMAGE_SUFFIXES and not line.startswith('"')):
        return [line]
    return [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True))]


def _shown(cells: list[str]) -> str:
    text = ",".join(cells)
    return repr(text if len(text) <= 80 else text[:77] + "...")
