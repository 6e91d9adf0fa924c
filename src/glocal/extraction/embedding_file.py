"""Embeddings of a collection in one file, for search engines, notebooks and clusterings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glocal.atomic_files import write_atomically
from glocal.data.open import open_source
from glocal.data.source import ImageSource
from glocal.errors import ConfigError
from glocal.extraction.image_embeddings import Embeddings, extract_embeddings
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.models.loading import load
from glocal.models.preprocessing import FeatureTransform


def embed(
    model: str | Path | Encoder,
    data: str | Path | ImageSource,
    out: str | Path,
    *,
    split: str | None = None,
    what: Sequence[str] = ("cls",),
    size: int | None = None,
    workers: int = 0,
) -> int:
    """Embed every readable image and write one row an image; return their number.

    A `.parquet` file gets the columns `key`, `label` (where there are labels) and one fixed-size list of float32 a
    readout; an `.npz` file gets the same arrays. Unreadable images are left out and named on standard error.

    Args:
        model: a run, as `glocal.pretrain` returns it, anything else that `glocal.load` reads, or a loaded encoder.
        data: anything `open_source` reads, or an open source.
        out: the file; its ending decides the format.
        split: train, val or test, where the data has them.
        what: readouts (`cls`, `mean_patches`, `gem_patches`; `cls@-2` for an earlier block).
        size: side of the model's input in pixels; null: the model's own.
        workers: processes that decode.

    Raises:
        ConfigError: for another ending or an unknown readout.

    >>> embed("runs/a", "photos", "photos.parquet")  # doctest: +SKIP
    """
    path = Path(out)
    if path.suffix not in (".parquet", ".npz"):
        raise ConfigError(f"out={out}: the ending must be .parquet or .npz.")
    encoder = load(str(model)) if isinstance(model, str | Path) else model
    source = open_source(data, split) if isinstance(data, str | Path) else data
    found = extract_embeddings(
        encoder, source, FeatureTransform(size=size), tuple(what), Work(workers=workers)
    )
    keys = [source.key(int(i)) for i in found.indices]
    write = _write_parquet if path.suffix == ".parquet" else _write_npz
    write_atomically(path, lambda file: write(file, keys, found))
    return len(keys)


def _write_parquet(file: IO[bytes], keys: list[str], found: Embeddings) -> None:
    columns: dict[str, pa.Array] = {"key": pa.array(keys)}
    if found.labels is not None:
        columns["label"] = pa.array(found.labels)
    for name, vectors in found.vectors.items():
        flat = pa.array(vectors.numpy().astype(np.float32).ravel())
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    pq.write_table(pa.table(columns), file)


def _write_npz(file: IO[bytes], keys: list[str], found: Embeddings) -> None:
    arrays = {name: vectors.numpy() for name, vectors in found.vectors.items()}
    labels = {} if found.labels is None else {"label": found.labels}
    np.savez(file, allow_pickle=False, **{"key": np.array(keys), **labels, **arrays})
