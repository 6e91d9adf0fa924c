"""Images named by a list file: one path a line, with a label beside it or not."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from glocal.data.decoding import IMAGE_SUFFIXES
from glocal.data.folder import FileSource
from glocal.errors import DataError

_PROBED = 16


def open_list(path: Path) -> FileSource:
    """Open a list file: one image path a line, or `path,label` (csv quoting; a header line `path,label` may lead).

    Paths are relative to the folder of the list, or absolute. Labels are whole numbers, taken as they are, or names,
    numbered in alphabetical order. Order is that of the list. Blank lines count for nothing.

    Raises:
        DataError: when the list can't be read, is empty, mixes lines with and without labels, or when none of its
            first images exists. Later ones that are missing are skipped and listed like any unreadable image.

    >>> len(open_list(Path("train.txt")))
    1000
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise DataError(f"The list '{path}' can't be read: {error.strerror}.") from error
    rows = [(number, _row(line)) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if rows and [cell.lower() for cell in rows[0][1]] in (["path"], ["path", "label"]):
        rows = rows[1:]
    if not rows:
        raise DataError(f"The list '{path}' names no images. Write one path a line, or path,label.")
    for number, cells in rows:
        if len(cells) > 2 or len(cells) != len(rows[0][1]) or not cells[0]:
            raise DataError(
                f"{path}, line {number}: {','.join(cells)!r} has {len(cells)} columns, line {rows[0][0]} has "
                f"{len(rows[0][1])}. Every line is a path, or every line is path,label; quote a path with a comma."
            )
    labels, class_names = _labels([cells[1] for _, cells in rows]) if len(rows[0][1]) == 2 else (None, None)
    source = FileSource(
        path.stem, path.parent, (os.fsencode(cells[0]) for _, cells in rows), labels, class_names
    )
    probed = [source.path(i) for i in range(min(len(source), _PROBED))]
    if not any(file.exists() for file in probed):
        raise DataError(
            f"{path}: none of the first {len(probed)} images exists, for example '{probed[0]}'. "
            f"Paths in the list are relative to its folder, '{path.parent}'."
        )
    return source


def _row(line: str) -> list[str]:
    """Split one line; one that ends like an image file is a path, whatever commas it has."""
    line = line.strip()
    if "," not in line or (line.rpartition(".")[2].lower() in IMAGE_SUFFIXES and not line.startswith('"')):
        return [line]
    return [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True))]


def _labels(texts: list[str]) -> tuple[Int64[np.ndarray, " images"], list[str] | None]:
    try:
        return np.array([int(text) for text in texts], dtype=np.int64), None
    except ValueError:
        names = sorted(set(texts))
        number = {name: i for i, name in enumerate(names)}
        return np.array([number[text] for text in texts], dtype=np.int64), names
