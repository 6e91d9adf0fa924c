"""The vectors of an index as one bank of rows: exact search in blocks, or faiss with its answers scored again exactly."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from glocal.atomic_files import write_atomically
from glocal.errors import ConfigError
from glocal.extraction.nearest import BANK_CHUNK, Neighbours, merge, nearest
from glocal.extraction.stored_numbers import Coded

Engine = Literal["auto", "exact", "faiss"]
"""auto: faiss where it is installed and the bank has 100,000 rows or more."""
FAISS_FROM = 100_000
COMPRESSED_FROM = 20_000_000
"""Rows from which faiss keeps codes of an eighth of the bytes (product quantisation) instead of one byte a value."""
PROBED = 64
"""Cells that faiss looks into: more find more and take longer."""
OVERSAMPLED = 4
"""faiss gives so many times the rows asked for; exact products choose among them."""


class VectorBank:
    """Rows of unit length in parts as they are stored; those not `alive` are never found.

    >>> bank = VectorBank([Coded(np.eye(3, dtype=np.float32))], np.ones(3, bool))
    >>> bank.nearest(torch.eye(3)[:1], 1).rows.tolist()
    [[0]]
    """

    def __init__(self, parts: Sequence[Coded], alive: Bool[np.ndarray, " rows"]) -> None:
        self.parts = [_flat(portion) for portion in parts]
        self.starts = np.cumsum([0, *(len(portion.values) for portion in self.parts)])
        self.alive = alive

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def dim(self) -> int:
        """Values of a row."""
        return int(self.parts[0].values.shape[1])

    def take(self, rows: NDArray[np.int64]) -> Float[Tensor, "rows dim"]:
        """Chosen rows in float32."""
        vectors = np.empty((len(rows), self.dim), np.float32)
        numbers = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(numbers):
            where = np.flatnonzero(numbers == number)
            vectors[where] = _rows(self.parts[number], rows[where] - self.starts[number])
        return torch.from_numpy(vectors)

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], Float[Tensor, "rows dim"]]]:
        """All living rows with their numbers, a block at a time."""
        for portion, start in zip(self.parts, self.starts, strict=False):
            for first in range(0, len(portion.values), BANK_CHUNK):
                inside = np.arange(first, min(first + BANK_CHUNK, len(portion.values)))
                inside = inside[self.alive[start + inside]]
                if len(inside):
                    whole = len(inside) == inside[-1] - inside[0] + 1
                    rows = slice(int(inside[0]), int(inside[-1]) + 1) if whole else inside
                    yield start + inside, torch.from_numpy(_rows(portion, rows))

    def nearest(self, queries: Float[Tensor, "queries dim"], k: int) -> Neighbours:
        """The k nearest living rows of every query by cosine, all when there are fewer."""
        best: Neighbours | None = None
        for numbers, rows in self.blocks():
            neighbours = nearest(queries, rows, k)
            best = merge(
                best, Neighbours(neighbours.similarity, torch.from_numpy(numbers)[neighbours.rows]), k
            )
        if best is None:
            return Neighbours(
                queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
            )
        return best


class FaissBank(VectorBank):
    """The same by faiss: cells around centroids (IVF), one byte a value or product codes, in a file beside the vectors.

    A file that lacks the last rows gets them added; one of more rows, or none, is made anew. Similarities are exact;
    which rows are found is not, see docs/search.md for the measured share.
    """

    def __init__(self, parts: Sequence[Coded], alive: Bool[np.ndarray, " rows"], path: Path) -> None:
        super().__init__(parts, alive)
        self.path = path
        self._index = self._open()

    def nearest(self, queries: Float[Tensor, "queries dim"], k: int) -> Neighbours:
        """The k nearest living rows that faiss finds, scored exactly."""
        faiss = _faiss()
        chosen = faiss.SearchParametersIVF(
            sel=faiss.IDSelectorBitmap(np.packbits(self.alive, bitorder="little")), nprobe=PROBED
        )
        asked = np.ascontiguousarray(queries.numpy(), np.float32)
        wanted = min(OVERSAMPLED * k, int(self.alive.sum()))
        _, rows = self._index.search(asked, wanted, params=chosen)
        similarity = torch.full(rows.shape, -torch.inf)
        for number, row in enumerate(rows):
            there = row[row >= 0]
            similarity[number, : len(there)] = self.take(there) @ queries[number]
        top = similarity.topk(min(k, wanted), dim=1)
        return Neighbours(top.values, torch.from_numpy(rows).gather(1, top.indices).clamp(min=0))

    def _open(self) -> Any:
        faiss = _faiss()
        index = faiss.read_index(str(self.path)) if self.path.exists() else None
        if index is None or index.ntotal > len(self) or index.d != self.dim:
            index = faiss.index_factory(self.dim, self._kind(), faiss.METRIC_INNER_PRODUCT)
            index.train(self._sample(index.nlist))
        if index.ntotal < len(self):
            for portion, start in zip(self.parts, self.starts, strict=False):
                for first in range(max(0, index.ntotal - int(start)), len(portion.values), BANK_CHUNK):
                    index.add(_rows(portion, slice(first, first + BANK_CHUNK)))
            content = faiss.serialize_index(index)
            write_atomically(self.path, lambda file: file.write(content.data))
        return index

    def _kind(self) -> str:
        cells = 2 ** round(np.log2(4 * np.sqrt(len(self))))
        codes = f"PQ{self.dim // 8}" if len(self) >= COMPRESSED_FROM and self.dim % 8 == 0 else "SQ8"
        return f"IVF{cells},{codes}"

    def _sample(self, cells: int) -> NDArray[np.float32]:
        """Rows to learn cells from: 40 a cell, evenly spread."""
        rows = np.linspace(0, len(self) - 1, min(len(self), 40 * cells)).astype(np.int64)
        sampled: NDArray[np.float32] = self.take(rows).numpy()
        return sampled


def open_bank(
    parts: Sequence[Coded], alive: Bool[np.ndarray, " rows"], path: Path, engine: Engine = "auto"
) -> VectorBank:
    """The bank by the engine that was asked for; `path` is where faiss keeps its own.

    Raises:
        ConfigError: for faiss where it is not installed, or too few rows for its cells.
    """
    rows = sum(int(np.prod(portion.values.shape[:-1])) for portion in parts)
    if engine == "exact" or (engine == "auto" and (rows < FAISS_FROM or not _has_faiss())):
        return VectorBank(parts, alive)
    if not _has_faiss():
        raise ConfigError("engine=faiss needs faiss: pip install 'glocal[faiss]'. Or take engine=exact.")
    if rows < 1000:
        raise ConfigError(f"engine=faiss needs 1,000 rows or more, here are {rows}. Take engine=exact.")
    return FaissBank(parts, alive, path)


def _has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None


def _faiss() -> Any:
    """The library; its annotations are those of the C++ functions under its Python ones."""
    return importlib.import_module("faiss")


def _flat(portion: Coded) -> Coded:
    """Patches of images as rows."""
    scale = None if portion.scale is None else portion.scale.reshape(-1)
    return Coded(portion.values.reshape(-1, portion.values.shape[-1]), scale)


def _rows(portion: Coded, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
    scale = None if portion.scale is None else portion.scale[rows]
    return np.ascontiguousarray(Coded(portion.values[rows], scale).decoded(), np.float32)
