"""An index of a collection: embeddings in segments that stay, and a table of which images are there and where."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from glocal.atomic_files import locked, write_atomically
from glocal.config import Config, validate
from glocal.data.open import open_source
from glocal.data.source import ImageSource
from glocal.errors import ConfigError, DataError, ModelError
from glocal.extraction.embedding_file import embed
from glocal.extraction.embedding_store import EmbeddingStore
from glocal.extraction.embedding_stream import PATCHES
from glocal.extraction.stored_numbers import Coded, Stored
from glocal.lookup.bank import Engine, VectorBank, open_bank
from glocal.models.encoder import Encoder
from glocal.models.loading import load_on
from glocal.models.precision import AskedPrecision, Precision
from glocal.models.preprocessing import FeatureTransform
from glocal.outside import given_path, read_json, reading

FORMAT = 1
ABOUT, IMAGES = "index.json", "images.parquet"
_CURE = "Make the index again with `glocal index`."


class IndexAbout(Config):
    """What decides an index, and the segments it consists of."""

    format: int = FORMAT
    model: str
    """What to load for queries."""
    fingerprint: str
    precision: Precision
    data: str
    split: str | None = None
    transform: FeatureTransform
    grid: tuple[int, int]
    patches: bool
    """Whether every patch is in the index, or class embeddings alone."""
    stored: Stored
    segments: tuple[str, ...] = ()
    unreadable: dict[str, str] = Field(default_factory=dict)
    """Stamps of images that could not be read, by key: tried again when they change."""


class Index:
    """An index that `glocal.index` made, opened.

    Rows are images in the order in which they were first indexed; those of images that went stay, and are not `alive`.

    >>> Index("photos.index").keys[0]  # doctest: +SKIP
    'a/1.jpg'
    """

    def __init__(self, path: str | Path) -> None:
        """Open a folder.

        Raises:
            DataError: when it holds no index.
        """
        self.path = given_path(path, "index", DataError)
        if not (self.path / ABOUT).is_file():
            raise DataError(
                f"'{self.path}' holds no index. Make one: glocal index MODEL data=... out={self.path}"
            )
        self.about = validate(IndexAbout, read_json(self.path / ABOUT, "an index", DataError, _CURE))
        self.stores = [EmbeddingStore(self.path / "segments" / name) for name in self.about.segments]
        with reading(self.path / IMAGES, "the images of an index", DataError, _CURE):
            # Rows beyond the segments are of an update that was interrupted.
            table = pq.read_table(self.path / IMAGES).slice(0, sum(map(len, self.stores)))
            self.keys: pa.ChunkedArray = table["key"]
            self.stamps: pa.ChunkedArray = table["stamp"]
            self.places: Int64[np.ndarray, " rows"] = table["place"].to_numpy()
            self.alive: Bool[np.ndarray, " rows"] = self.places >= 0

    def __len__(self) -> int:
        """Images that can be found."""
        return int(self.alive.sum())

    def key(self, row: int) -> str:
        """What the source calls an image."""
        return str(self.keys[row].as_py())

    def bank(self, engine: Engine = "auto") -> VectorBank:
        """Class embeddings, a row an image."""
        return open_bank(self._parts("cls"), self.alive, self.path / "cls.faiss", engine)

    def patch_bank(self, engine: Engine = "auto") -> VectorBank:
        """Patch embeddings, a row a patch: image `row // patches`, patch `row % patches`.

        Raises:
            ConfigError: when the index holds none.
        """
        if not self.about.patches:
            raise ConfigError(
                f"{self.path} holds no patches, which a query by box or patch looks through. "
                f"Make it with them: glocal index MODEL data=... out=... patches=true"
            )
        each = self.about.grid[0] * self.about.grid[1]
        alive = np.repeat(self.alive, each)
        return open_bank(self._parts(PATCHES), alive, self.path / "patches.faiss", engine)

    def patches_of(self, row: int) -> Float[Tensor, "patches dim"]:
        """Stored patches of one image, of length 1."""
        each = self.about.grid[0] * self.about.grid[1]
        bank = self._patch_rows
        return bank.take(np.arange(row * each, (row + 1) * each))

    @functools.cached_property
    def source(self) -> ImageSource:
        """The indexed images, opened."""
        return open_source(self.about.data, self.about.split)

    def encoder(self, device: str = "auto") -> Encoder:
        """The model that made the index.

        Raises:
            ModelError: when what stands in its place has other weights.
        """
        encoder = load_on(self.about.model, device, self.about.precision)
        self.check(encoder)
        return encoder

    def check(self, encoder: Encoder) -> None:
        """Refuse another model."""
        if encoder.fingerprint() != self.about.fingerprint:
            raise ModelError(
                f"{self.path} was made by another model than '{encoder.name}', or its weights have changed since. "
                "Make the index again, or bring back the model."
            )

    @functools.cached_property
    def _patch_rows(self) -> VectorBank:
        return self.patch_bank("exact")

    def _parts(self, name: str) -> list[Coded]:
        return [portion.columns[name] for store in self.stores for portion in store.parts()]


def index(
    model: str | Path | Encoder,
    data: str | Path | ImageSource,
    out: str | Path,
    *,
    patches: bool = False,
    stored: Stored = "int8",
    split: str | None = None,
    size: int | None = None,
    device: str = "auto",
    precision: AskedPrecision = "float32",
    workers: int = 0,
    progress: bool = True,
) -> Index:
    """Make an index of a collection, or bring one up to date: only images that are new or have changed are computed.

    Images are squashed into the model's square, so that nothing at their margins is lost. Call it again after an
    interruption, after adding, changing or removing images; what stays keeps its rows.

    Args:
        model: what `glocal.load` reads, or a loaded encoder.
        data: anything `open_source` reads, or an open source.
        out: the index's folder.
        patches: index every patch, too: needed to search by box or patch, and makes re-ranking a matter of reading.
        stored: the numbers of the vectors; int8 takes a quarter of the bytes at an error that the index states.
        split: train, val or test, where the data has them.
        size: side of the model's input in pixels; null: the model's own.
        device: cpu, cuda; auto: the first GPU.
        precision: of the forward pass.
        workers: processes that decode.
        progress: show how far it is.

    Raises:
        ConfigError: when the folder holds an index by another model or of other settings.
        DataError: when no image could be read.

    >>> index("runs/a", "photos", "photos.index", patches=True)  # doctest: +SKIP
    """
    folder = given_path(out, "out")
    encoder = model if isinstance(model, Encoder) else load_on(model, device, precision)
    source = open_source(data, split) if isinstance(data, str | Path) else data
    about = _about(encoder, model, data, source, patches, stored, split, size)
    _check_folder(folder, about)
    with locked(folder / ABOUT):
        before = Index(folder) if (folder / ABOUT).is_file() else None
        keys, stamps = unique_keys(source), [source.stamp(i) for i in range(len(source))]
        table, added = _compare(before, keys, stamps)
        segments, bad = (before.about.segments, before.about.unreadable) if before is not None else ((), {})
        bad = {key: stamp for key, stamp in zip(keys, stamps, strict=True) if bad.get(key) == stamp}
        added = np.array([i for i in added if keys[i] not in bad], np.int64)
        if len(added):
            name = _segment_name([keys[i] for i in added], [stamps[i] for i in added])
            store = embed(
                encoder, source.subset(added), folder / "segments" / name, form="npy", stored=stored, unit=True,
                what=("cls", PATCHES) if patches else ("cls",), size=size, resize="squash",
                workers=workers, progress=progress,
            )  # fmt: skip
            rows = added[store.indices]
            for column, values in (("key", keys), ("stamp", stamps)):
                table[column] += [values[i] for i in rows]
            table["place"] = np.concatenate([table["place"], rows])
            segments = (*segments, name)
            bad |= {keys[i]: stamps[i] for i in np.setdiff1d(added, rows)}
        _write(folder, about.model_copy(update={"segments": segments, "unreadable": bad}), table)
        _remove_leftovers(folder, segments)
    return Index(folder)


def unique_keys(source: ImageSource) -> list[str]:
    """The source's names of its images; where several share one, their number is put behind it."""
    seen: Counter[str] = Counter()
    keys = []
    for i in range(len(source)):
        key = source.key(i)
        keys.append(f"{key}#{seen[key]}" if seen[key] else key)
        seen[key] += 1
    return keys


def _about(
    encoder: Encoder,
    model: str | Path | Encoder,
    data: str | Path | ImageSource,
    source: ImageSource,
    patches: bool,
    stored: Stored,
    split: str | None,
    size: int | None,
) -> IndexAbout:
    transform = FeatureTransform(size=size, resize="squash").resolve(encoder)
    assert transform.size is not None
    return IndexAbout(
        model=encoder.name if isinstance(model, Encoder) else _lasting(model),
        fingerprint=encoder.fingerprint(), precision=encoder.precision,
        data=source.name if isinstance(data, ImageSource) else _lasting(data), split=split, transform=transform,
        grid=(transform.size // encoder.patch_size,) * 2, patches=patches, stored=stored,
    )  # fmt: skip


def _lasting(text: str | Path) -> str:
    """A path that holds from any working folder."""
    path = Path(text).expanduser()
    return str(path.resolve()) if path.exists() else str(text)


def _check_folder(folder: Path, about: IndexAbout) -> None:
    """The folder is empty, not there, or an index of the same kind."""
    if not (folder / ABOUT).is_file():
        there = [p for p in folder.iterdir() if p.name not in ("segments",)] if folder.is_dir() else []
        if any(not path.name.startswith(".") for path in there):
            raise ConfigError(f"out={folder} is a folder that holds something else. Choose another out=.")
        return
    before = Index(folder).about
    for key in ("fingerprint", "precision", "transform", "patches", "stored"):
        if getattr(before, key) != getattr(about, key):
            raise ConfigError(
                f"{folder} is an index of other {key} ({getattr(before, key)}, asked for {getattr(about, key)}). "
                "Keep what it has, or choose another out=."
            )


def _compare(
    before: Index | None, keys: list[str], stamps: list[str]
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """The table of rows as it is to be, and which images are to be computed."""
    if before is None:
        return {"key": [], "stamp": [], "place": np.empty(0, np.int64)}, np.arange(len(keys))
    place = {key: i for i, key in enumerate(keys)}
    old_keys, old_stamps = before.keys.to_pylist(), before.stamps.to_pylist()
    places = np.full(len(old_keys), -1, np.int64)
    kept = np.zeros(len(keys), bool)
    for row, (key, stamp) in enumerate(zip(old_keys, old_stamps, strict=True)):
        i = place.get(key, -1)
        # Gone images keep their vectors: one that comes back as it was is found again without being computed.
        if i >= 0 and stamps[i] == stamp and not kept[i]:
            places[row], kept[i] = i, True
    return {"key": old_keys, "stamp": old_stamps, "place": places}, np.flatnonzero(~kept)


def _segment_name(keys: list[str], stamps: list[str]) -> str:
    """Named by its content, so that an interrupted one is found again."""
    digest = hashlib.blake2b(digest_size=8)
    for text in (*keys, *stamps):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _write(folder: Path, about: IndexAbout, table: dict[str, Any]) -> None:
    """The table first: rows beyond those of the named segments are not there yet for a reader."""
    columns = {
        "key": pa.array(table["key"], pa.string()),
        "stamp": pa.array(table["stamp"], pa.string()),
        "place": pa.array(table["place"], pa.int64()),
    }
    write_atomically(folder / IMAGES, lambda file: pq.write_table(pa.table(columns), file))
    text = about.model_dump_json(indent=1)
    write_atomically(folder / ABOUT, lambda file: file.write(text.encode()))


def _remove_leftovers(folder: Path, segments: tuple[str, ...]) -> None:
    """Segments of interrupted work that is no longer wanted."""
    for path in (folder / "segments").glob("*"):
        if path.name not in segments:
            shutil.rmtree(path, ignore_errors=True)
