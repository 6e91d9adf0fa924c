"""Images in parquet files, in the layout of Hugging Face data sets.

Random access to a parquet file costs a whole row group, because pages are compressed together. Row groups are
therefore decompressed once and kept, encoded as the images are, up to a number of bytes; a set that fits (CIFAR-10:
56 MB) is read at the speed of memory from the second visit on. Past that, shuffled reading decompresses a group for
almost every image: unpack such a set to a folder, or keep its row groups small.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Integer, Shaped
from PIL import Image

from glocal.data.decoding import decode_image, decode_mask
from glocal.data.parquet_columns import (
    class_names_of,
    declared_features,
    is_binary,
    plain_columns,
    read_column,
    read_labels,
)
from glocal.data.source import ImageSource, check_index, short_hash
from glocal.data.splits import ALL, SPELLINGS, split_of_file, split_of_folder
from glocal.errors import DataError, UnreadableImageError
from glocal.outside import reading

MEMORY_LIMIT = 2**30
"""Bytes of row groups that one process keeps, by default."""
_IMAGE_COLUMNS = ("image", "img")


class ParquetSource(ImageSource):
    """Rows of parquet files: `image` (`struct<bytes, path>` or bytes), and `mask` and `label` where there are any.

    Class names come from the schema's metadata, or are the values of a text label. A row without a label (null, or
    negative) has the number -1. An image with a path and no bytes is read from that path,
    relative to its parquet file.

    >>> source = ParquetSource([Path("train-00000-of-00001.parquet")])
    >>> source.read(0).mode
    'RGB'
    """

    def __init__(
        self, files: Sequence[Path], name: str | None = None, memory_limit: int = MEMORY_LIMIT
    ) -> None:
        """Read the footers and the labels of all files; images are read when asked for.

        Raises:
            DataError: when a file is no parquet, has no image column, or differs from the first in its columns.
        """
        if not files:
            raise DataError("No parquet files were given.")
        self.name = name if name is not None else files[0].stem
        self._paths: pa.ChunkedArray | None = None
        self._files = [str(file) for file in files]
        self._memory_limit = memory_limit
        footers = [_footer(file) for file in files]
        schema = footers[0].schema.to_arrow_schema()
        self._image = _find_image(schema, files[0])
        self._mask = "mask" if "mask" in schema.names else None
        self.has_masks = self._mask is not None
        _check_same(files, footers, [c for c in (self._image, self._mask) if c is not None])
        groups = [
            (i, g, f.row_group(g).num_rows) for i, f in enumerate(footers) for g in range(f.num_row_groups)
        ]
        self._group_places = np.array([place[:2] for place in groups], dtype=np.int64).reshape(-1, 2)
        self._group_starts = np.concatenate([[0], np.cumsum([rows for *_, rows in groups], dtype=np.int64)])
        self._file_starts = np.concatenate([[0], np.cumsum([f.num_rows for f in footers], dtype=np.int64)])
        self._file_names = [file.name for file in files]
        if len(self) == 0:
            raise DataError(f"{', '.join(self._files)}: no rows.")
        self.labels, self.class_names = read_labels(files, schema)
        self._digest = short_hash(*(_file_digest(file) for file in files))
        self._start_empty()

    def __len__(self) -> int:
        """How many rows there are."""
        return int(self._group_starts[-1])

    def key(self, index: int) -> str:
        """Return the row's `image.path` where it has one, else the file's name and the row in it.

        Cost: all paths are read at the first call.
        """
        check_index(index, len(self), self.name)
        if self._paths is None:
            self._paths = self._read_paths()
        text = self._paths[index].as_py() if len(self._paths) else None
        return str(text) if text else self._row_name(index)

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Decode one image (see `ImageSource.read`)."""
        return decode_image(self._cell(index, self._image), at_least, name=self._row_name(index))

    def read_mask(self, index: int) -> Integer[np.ndarray, "height width"]:
        """Decode one mask (see `ImageSource.read_mask`)."""
        if self._mask is None:
            return super().read_mask(index)
        return decode_mask(self._cell(index, self._mask), name=f"{self._row_name(index)} (mask)")

    def columns(self) -> tuple[str, ...]:
        """Those of plain values, and `label`."""
        return tuple(dict.fromkeys([*super().columns(), *plain_columns(pq.read_schema(self._files[0]))]))

    def column(self, name: str) -> Shaped[np.ndarray, " images"]:
        """One column as text; a declared class by its name."""
        if name not in self.columns() or (name == "label" and self.labels is not None):
            return super().column(name)
        values = read_column([Path(file) for file in self._files], name)
        names = class_names_of(declared_features(pq.read_schema(self._files[0])), name)
        texts = ["" if value is None else str(value) for value in values.to_pylist()]
        return np.array(
            [names[int(t)] if names and t.isdigit() and int(t) < len(names) else t for t in texts]
        )

    def fingerprint(self) -> str:
        """Names, sizes and footers (offsets and statistics of every column) of the files."""
        return self._digest

    def state(self) -> str:
        """The fingerprint, and when the files were last written: pages may change under an equal footer."""
        times = [Path(file).stat().st_mtime_ns for file in self._files]
        return short_hash(self._digest.encode(), str(times).encode())

    def __getstate__(self) -> dict[str, Any]:
        """Everything but open files and row groups; a worker opens its own."""
        dropped = ("_readers", "_groups", "_lock", "_paths", "_process", "_kept")
        return {key: value for key, value in self.__dict__.items() if key not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state over; files are opened at the first read."""
        self.__dict__.update(state)
        self._start_empty()

    def _start_empty(self) -> None:
        self._groups: dict[tuple[int, str], pa.ChunkedArray] = {}
        self._kept = 0
        self._paths = None
        self._own_process()

    def _own_process(self) -> None:
        """After a fork: keep the row groups (their pages are shared), but neither readers nor a lock someone holds."""
        self._readers: dict[int, pq.ParquetFile] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def _cell(self, index: int, column: str) -> bytes | Path:
        check_index(index, len(self), self.name)
        group = int(np.searchsorted(self._group_starts, index, side="right")) - 1
        value = self._group(group, column)[index - int(self._group_starts[group])]
        if pa.types.is_struct(value.type):
            path = value["path"].as_py() if "path" in value.type.names and value.is_valid else None
            value = value["bytes"] if value.is_valid else None
            if path and (value is None or not value.is_valid):
                return Path(self._files[self._group_places[group, 0]]).parent / str(path)
        if value is None or not value.is_valid:
            raise UnreadableImageError(f"{self._row_name(index)}: the column '{column}' is empty")
        return bytes(value.as_buffer())

    def _group(self, group: int, column: str) -> pa.ChunkedArray:
        """Return one column of one row group, from memory or from the file; the longest unused makes room."""
        if self._process != os.getpid():
            self._own_process()
        with self._lock:
            values = self._groups.pop((group, column), None)
            if values is None:
                values = self._read_group(group, column)
                self._kept += values.nbytes
                while self._groups and self._kept > self._memory_limit:
                    self._kept -= self._groups.pop(next(iter(self._groups))).nbytes
            # A dict keeps the order of insertion, so the first entry is the one unused for longest.
            self._groups[group, column] = values
            return values

    def _read_group(self, group: int, column: str) -> pa.ChunkedArray:
        file, number = (int(n) for n in self._group_places[group])
        try:
            if file not in self._readers:
                # Memory-mapped: readers forked with an open file would share, and disturb, its position.
                self._readers[file] = pq.ParquetFile(self._files[file], memory_map=True)
            return self._readers[file].read_row_group(number, columns=[column], use_threads=False).column(0)
        except (OSError, pa.ArrowException) as error:
            raise UnreadableImageError(f"{self._files[file]}, row group {number}: {error}") from error

    def _row_name(self, index: int) -> str:
        file = int(np.searchsorted(self._file_starts, index, side="right")) - 1
        return f"{self._file_names[file]}#{index - int(self._file_starts[file])}"

    def _read_paths(self) -> pa.ChunkedArray:
        column = f"{self._image}.path"
        tables = []
        for file in self._files:
            with reading(
                file, f"parquet with a column '{column}'", cure="Was it copied or downloaded whole?"
            ):
                reader = pq.ParquetFile(file, memory_map=True)
                if column not in (reader.schema.column(i).path for i in range(len(reader.schema))):
                    return pa.chunked_array([], type=pa.string())
                tables.append(reader.read(columns=[column], use_threads=False).column(0))
        chunks = [chunk.flatten()[0].cast(pa.string()) for table in tables for chunk in table.chunks]
        return pa.chunked_array(chunks, type=pa.string())


def open_parquet(files: Sequence[Path], split: str | None = None, name: str | None = None) -> ParquetSource:
    """Open the parquet files of one split, told from file names (`train-00000-of-00001.parquet`) or their folder's.

    Without `split` the files of `train` are taken, or all when there are none; `all` takes every file.

    Raises:
        DataError: when there is no such split, or a file can't be used.

    >>> open_parquet([Path("train-0.parquet"), Path("test-0.parquet")], split="test").name
    'test-0'
    """
    present = parquet_splits(files)
    if split is None:
        split = "train" if "train" in present else ALL
    chosen = sorted(file for file in files if split == ALL or _split_of(file) == split)
    if not chosen:
        seen = (
            f"splits {', '.join(present)}"
            if present
            else f"no split in its name, for example {files[0].name}"
        )
        raise DataError(
            f"Among {len(files)} parquet files ('{files[0]}') there is none of split '{split}'; seen: {seen}. "
            f"Names must begin with '{split}', like {split}-00000-of-00001.parquet."
        )
    return ParquetSource(chosen, name if name is None or split not in present else f"{name}/{split}")


def parquet_splits(files: Sequence[Path]) -> tuple[str, ...]:
    """The splits that parquet files are of, told from their names or their folders' names.

    >>> parquet_splits([Path("data/test-0.parquet"), Path("data/train-0.parquet")])
    ('train', 'test')
    """
    named = {_split_of(file) for file in files}
    return tuple(split for split in SPELLINGS if split in named)


def _split_of(file: Path) -> str | None:
    return split_of_file(file.stem) or split_of_folder(file.parent.name)


def parquet_files(folder: Path) -> list[Path]:
    """Return the parquet files of a folder: directly in it, else in `data/`, else in split folders; maybe none."""
    spots = [folder, folder / "data", *(folder / s for spellings in SPELLINGS.values() for s in spellings)]
    for spot in (spots[:1], spots[1:2], spots[2:]):
        files = sorted(f for place in spot for f in place.glob("*.parquet") if not f.name.startswith("."))
        if files:
            return files
    return []


def _footer(file: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(file)
    except FileNotFoundError as error:
        raise DataError(f"The parquet file '{file}' does not exist.") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"'{file}' can't be read as parquet: {error}. Was it copied or downloaded whole?"
        ) from error


def _find_image(schema: pa.Schema, file: Path) -> str:
    named = [name for name in _IMAGE_COLUMNS if name in schema.names]
    shaped = [
        f.name for f in schema if f.name != "mask" and pa.types.is_struct(f.type) and _holds_bytes(f.type)
    ]
    for name in [*named, *(shaped if len(shaped) == 1 else [])]:
        kind = schema.field(name).type
        if _holds_bytes(kind):
            return str(name)
    raise DataError(
        f"'{file}' has no image column; its columns: {', '.join(f'{f.name} ({f.type})' for f in schema)}. "
        "Needed: 'image' as struct<bytes: binary, path: string>, the Hugging Face layout, or as binary."
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return is_binary(kind)


def _check_same(files: Sequence[Path], footers: Sequence[pq.FileMetaData], columns: Sequence[str]) -> None:
    first = footers[0].schema.to_arrow_schema()
    for file, footer in zip(files, footers, strict=True):
        schema = footer.schema.to_arrow_schema()
        for column in columns:
            if column not in schema.names or schema.field(column).type != first.field(column).type:
                seen = schema.field(column).type if column in schema.names else "missing"
                raise DataError(
                    f"'{file}': column '{column}' is {seen}, in '{files[0]}' it is {first.field(column).type}. "
                    "Files that are opened together must have the same columns."
                )


def _file_digest(file: Path) -> bytes:
    """Hash a file's name, size and footer, without reading its pages."""
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(size - 8)
        length = int.from_bytes(opened.read(4), "little")
        opened.seek(size - 8 - length)
        footer = opened.read(length)
    return hashlib.sha256(f"{file.name}\0{size}\0".encode() + footer).digest()
