"""A collection's embeddings on disk, read back: one at a time, in batches, as arrays, as a table."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from glocal.config import Config, validate
from glocal.errors import ConfigError, DataError, nearest_name
from glocal.extraction.embedding_shards import METADATA, Form, Part, part_of_table, read_part
from glocal.extraction.stored_numbers import Stored
from glocal.models.preprocessing import FeatureTransform
from glocal.outside import given_path, read_json, reading

if TYPE_CHECKING:
    import pandas

FORMAT = 1
"""Layout of the files."""
MANIFEST = "manifest.json"
_CURE = "Write the embeddings again with `glocal embed`."


class PartRecord(Config):
    """One part: which images it holds and how many rows it has."""

    start: int
    images: int
    rows: int


class Manifest(Config):
    """What embeddings are: everything that decides them, and what storing them cost."""

    format: int = FORMAT
    model: str
    fingerprint: str
    precision: str
    device: str
    """cpu or cuda; the last digits depend on it."""
    data: str
    data_fingerprint: str
    images: int
    transform: FeatureTransform
    what: tuple[str, ...]
    stored: Stored
    unit: bool = False
    """Whether vectors have length 1."""
    form: Form
    grid: tuple[int, int]
    """Rows and columns of patches of every image."""
    complete: bool = False
    parts: tuple[PartRecord, ...] = ()
    error: dict[str, dict[str, float]] = Field(default_factory=dict)
    """|stored - computed| / |computed| over all rows: root mean square and largest, by readout."""
    unreadable: dict[str, str] = Field(default_factory=dict)
    """Images left out, and why."""
    left_out: dict[str, int] = Field(default_factory=dict)
    """Files of the source that are no images to this installation, counted by ending."""

    def deciding(self) -> dict[str, Any]:
        """What must agree for work to go on in the same place."""
        return self.model_dump(
            mode="json",
            exclude={"complete", "parts", "error", "unreadable", "left_out", "grid", "model", "data"},
        )


class EmbeddingStore(Dataset[dict[str, Any]]):
    """Embeddings that `glocal.embed` wrote, in the order of the source; unreadable images have no row.

    >>> store = EmbeddingStore("embeddings")              # doctest: +SKIP
    >>> store[0]["cls"].shape, store.numpy("cls").shape   # doctest: +SKIP
    (torch.Size([384]), (5000, 384))
    """

    def __init__(self, path: str | Path) -> None:
        """Open a folder, or the one parquet file, that `glocal.embed` wrote.

        Raises:
            DataError: when it is neither, or its work was interrupted.
        """
        self.path = given_path(path, "embeddings", DataError)
        self.manifest = read_manifest(self.path)
        if not self.manifest.complete:
            raise DataError(f"{self.path} is not complete. Run the same `glocal embed` again; it goes on.")
        self._starts = np.cumsum([0, *(record.rows for record in self.manifest.parts)])
        self._part = functools.lru_cache(maxsize=2)(self._read)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> dict[str, Any]:
        """One image: `key`, `index` (its place in the source), `label` where there is one, and a tensor a readout."""
        if not 0 <= row < len(self):
            raise IndexError(f"{self.path} has no row {row}; rows go from 0 to {len(self) - 1}.")
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return {
            name: value[0] for name, value in self._rows(number, row - int(self._starts[number]), 1).items()
        }

    def batches(self, size: int = 256) -> Iterator[dict[str, Any]]:
        """All rows in order, up to `size` at a time and never of two parts; one part is held at most."""
        for number in range(len(self.manifest.parts)):
            for first in range(0, self.manifest.parts[number].rows, size):
                yield self._rows(number, first, size)

    def numpy(self, name: str = "cls") -> Float[np.ndarray, "images *patches dim"]:
        """Every row of one readout in float32, in memory.

        Raises:
            ConfigError: for a readout that was not asked for.
        """
        self.check(name)
        empty = np.empty((0, 0), np.float32)
        return np.concatenate([portion.columns[name].decoded() for portion in self.parts()] or [empty])

    @property
    def keys(self) -> list[str]:
        """What the source calls each row's image."""
        return [key for portion in self.parts() for key in portion.keys]

    @property
    def indices(self) -> Int64[np.ndarray, " images"]:
        """Each row's place in the source."""
        return np.concatenate([np.empty(0, np.int64), *(portion.index for portion in self.parts())])

    def pandas(self) -> pandas.DataFrame:
        """A row an image: key, index, label, and an array a readout.

        Raises:
            ConfigError: where pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ConfigError("Tables need pandas: pip install pandas.") from error
        columns: dict[str, list[Any]] = {}
        for batch in self.batches():
            for name, values in batch.items():
                columns.setdefault(name, []).extend(values.numpy() if isinstance(values, Tensor) else values)
        return pandas.DataFrame(columns)

    def parts(self) -> Iterator[Part]:
        """Parts in order; one is held at a time, of .npy files only what is touched."""
        return (self._part(number) for number in range(len(self.manifest.parts)))

    def check(self, name: str) -> None:
        """Refuse a readout that is not here."""
        what = self.manifest.what
        if name not in what:
            raise ConfigError(
                f"{self.path} has no '{name}'.{nearest_name(name, what)} It holds: {', '.join(what)}."
            )

    def _read(self, number: int) -> Part:
        with reading(self.path, "embeddings", DataError, _CURE):
            if self.path.is_dir():
                start = self.manifest.parts[number].start
                return read_part(self.path, start, self.manifest.form, self.manifest.what)
            with pq.ParquetFile(self.path) as file:
                return part_of_table(file.read_row_group(number), self.manifest.what)

    def _rows(self, number: int, first: int, count: int) -> dict[str, Any]:
        portion, rows = self._part(number), slice(first, first + count)
        batch: dict[str, Any] = {"key": portion.keys[rows], "index": portion.index[rows].tolist()}
        if portion.labels is not None:
            batch["label"] = portion.labels[rows].tolist()
        for name, stored in portion.columns.items():
            scale = None if stored.scale is None else stored.scale[rows]
            batch[name] = torch.from_numpy(type(stored)(stored.values[rows], scale).decoded())
        return batch


def read_manifest(path: Path) -> Manifest:
    """The manifest of a folder or of a parquet file.

    Raises:
        DataError: when there is none, or it is no such thing.
    """
    if path.is_dir():
        return validate(Manifest, read_json(path / MANIFEST, "a manifest of embeddings", DataError, _CURE))
    with reading(path, "embeddings", DataError, _CURE):
        metadata = pq.read_schema(path).metadata or {}
        if METADATA not in metadata:
            raise ValueError("its schema says nothing of glocal")
        return validate(Manifest, json.loads(metadata[METADATA]))
