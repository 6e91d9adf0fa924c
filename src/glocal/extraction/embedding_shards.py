"""One part of a collection's embeddings on disk, as parquet or as .npy files that can be mapped into memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64
from numpy.typing import NDArray

from glocal.atomic_files import write_atomically
from glocal.extraction.stored_numbers import Coded

Form = Literal["parquet", "npy"]
SCALE = "_scale"
"""Ending of the column that holds the scales of an int8 column."""
METADATA = b"glocal"


@dataclass
class Part:
    """Rows of some images, in the order of the source."""

    index: Int64[np.ndarray, " images"]
    keys: list[str]
    labels: Int64[np.ndarray, " images"] | None
    columns: dict[str, Coded]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every numeric column by name."""
        arrays: dict[str, NDArray[Any]] = {"index": self.index}
        if self.labels is not None:
            arrays["label"] = self.labels
        for name, stored in self.columns.items():
            arrays[name] = stored.values
            if stored.scale is not None:
                arrays[name + SCALE] = stored.scale
        return arrays


def write_part(folder: Path, start: int, form: Form, portion: Part, about: Mapping[str, Any]) -> None:
    """Write the part that begins at image `start`; every file is whole or absent. `about` stands in parquet's metadata."""
    stem = part_stem(folder, start)
    if form == "parquet":
        table = _table(portion).replace_schema_metadata({METADATA: json.dumps(about)})
        write_atomically(Path(f"{stem}.parquet"), lambda file: pq.write_table(table, file))
        return
    for name, array in portion.arrays().items():
        write_atomically(Path(f"{stem}.{name}.npy"), lambda file, array=array: np.save(file, array))  # type: ignore[misc]
    write_atomically(Path(f"{stem}.keys.json"), lambda file: file.write(json.dumps(portion.keys).encode()))


def read_part(folder: Path, start: int, form: Form, names: Sequence[str]) -> Part:
    """Read a part with the named columns; .npy files are mapped, not read, until rows are taken."""
    stem = part_stem(folder, start)
    if form == "parquet":
        return part_of_table(pq.read_table(f"{stem}.parquet"), names)

    def mapped(name: str) -> NDArray[Any] | None:
        path = Path(f"{stem}.{name}.npy")
        return np.load(path, mmap_mode="r") if path.exists() else None

    index = mapped("index")
    assert index is not None
    columns = {name: Coded(np.asanyarray(mapped(name)), mapped(name + SCALE)) for name in names}
    keys = json.loads(Path(f"{stem}.keys.json").read_text(encoding="utf-8"))
    return Part(index, keys, mapped("label"), columns)


def part_of_table(table: pa.Table, names: Sequence[str]) -> Part:
    """A part from rows of a parquet file."""

    def column(name: str) -> NDArray[Any]:
        array, shape = table[name].combine_chunks(), [table.num_rows]
        while pa.types.is_fixed_size_list(array.type):
            shape.append(array.type.list_size)
            array = array.flatten()
        values: NDArray[Any] = array.to_numpy(zero_copy_only=False)
        return values.reshape(shape)

    present = set(table.column_names)
    columns = {
        name: Coded(column(name), column(name + SCALE) if name + SCALE in present else None) for name in names
    }
    labels = column("label") if "label" in present else None
    return Part(column("index"), table["key"].to_pylist(), labels, columns)


def part_stem(folder: Path, start: int) -> Path:
    """What the names of a part's files begin with."""
    return folder / f"part-{start:010d}"


def _table(portion: Part) -> pa.Table:
    columns: dict[str, pa.Array] = {"key": pa.array(portion.keys, pa.string())}
    for name, array in portion.arrays().items():
        nested = pa.array(array.ravel())
        for side in reversed(array.shape[1:]):
            nested = pa.FixedSizeListArray.from_arrays(nested, side)
        columns[name] = nested
    return pa.table(columns)
