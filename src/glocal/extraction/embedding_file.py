"""`glocal embed`: a collection's embeddings, written part by part; work that was interrupted goes on behind the last."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from glocal.atomic_files import locked, write_atomically
from glocal.data.open import open_source
from glocal.data.source import ImageSource
from glocal.errors import ConfigError, DataError
from glocal.extraction.embedding_shards import METADATA, Form, Part, part_stem, write_part
from glocal.extraction.embedding_store import MANIFEST, EmbeddingStore, Manifest, PartRecord, read_manifest
from glocal.extraction.embedding_stream import PATCHES, EmbeddingBatch, iterate_embeddings, parse_readouts
from glocal.extraction.image_embeddings import SHARD, read_kept, shards_folder
from glocal.extraction.journal import Journal
from glocal.extraction.progress import progress_bar
from glocal.extraction.stored_numbers import Coded, CodingError, Stored, coded
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.models.loading import load_on
from glocal.models.precision import AskedPrecision
from glocal.models.preprocessing import FeatureTransform
from glocal.outside import given_path

MOST_IMAGES = 2048
"""Images a part: so much work can be lost."""
MOST_BYTES = 128 * 2**20
"""Of float32 values a part, held in memory up to three times. A part is one forward pass at least."""


def embed(
    model: str | Path | Encoder,
    data: str | Path | ImageSource,
    out: str | Path,
    *,
    what: Sequence[str] = ("cls",),
    stored: Stored = "float32",
    form: Form = "parquet",
    unit: bool = False,
    split: str | None = None,
    size: int | None = None,
    resize: Literal["crop", "squash"] = "crop",
    features: str | Path | None = None,
    device: str = "auto",
    precision: AskedPrecision = "float32",
    workers: int = 0,
    progress: bool = True,
) -> EmbeddingStore:
    """Embed every readable image into files; call it again after an interruption, and it goes on.

    A folder gets `manifest.json` and parts of up to 2,048 images: parquet files, or .npy files to be mapped into memory.
    An `out` that ends in `.parquet` becomes one file, put together when all parts are there. Columns are `key`, `index`,
    `label` (where there are labels) and one a readout, with `_scale` beside it for int8. Unreadable images have no row;
    the manifest names them.

    Args:
        model: what `glocal.load` reads, or a loaded encoder, which stays on its device and in its precision.
        data: anything `open_source` reads, or an open source.
        out: a folder, or a file that ends in .parquet.
        what: `cls`, `mean_patches`, `gem_patches`, `patches`; `cls@-2` for an earlier block.
        stored: the numbers in the files; the manifest states the error of float16 and int8, measured on all rows.
        form: of the parts.
        unit: bring every vector to length 1, as search by cosine takes them.
        split: train, val or test, where the data has them.
        size: side of the model's input in pixels; null: the model's own.
        resize: `crop` to the central square, or `squash` everything into it.
        features: the `out` of an evaluation; class and pooled embeddings that it kept are taken instead of computed.
        device: cpu, cuda; auto: the first GPU.
        precision: of the forward pass; auto: bfloat16 where it is native.
        workers: processes that decode.
        progress: show how far it is.

    Raises:
        ConfigError: for an unknown readout, or an `out` that holds something else.
        DataError: when the data can't be opened, or nothing of it could be read for one file.

    >>> embed("runs/a", "photos", "embeddings", what=["cls", "patches"], stored="int8")  # doctest: +SKIP
    """
    asked = parse_readouts(what)
    path = given_path(out, "out")
    encoder = model if isinstance(model, Encoder) else load_on(model, device, precision)
    source = open_source(data, split) if isinstance(data, str | Path) else data
    transform = FeatureTransform(size=size, resize=resize).resolve(encoder)
    assert transform.size is not None
    single = path.suffix == ".parquet"
    folder = path.with_name(f".{path.name}.parts") if single else path
    manifest = Manifest(
        model=encoder.name, fingerprint=encoder.fingerprint(), precision=encoder.precision,
        device=encoder.device.type, data=source.name, data_fingerprint=source.fingerprint(), images=len(source), transform=transform,
        grid=(transform.size // encoder.patch_size,) * 2, what=tuple(asked), stored=stored, unit=unit, form="parquet" if single else form,
        left_out=dict(source.left_out),
    )  # fmt: skip
    if _is_done(path, manifest):
        return EmbeddingStore(path)
    _check_folder(folder, manifest)
    with locked(folder / MANIFEST):
        kept = None if features is None else Path(features)
        _Writing(encoder, source, folder, manifest, kept).run(Work(workers=workers, progress=progress))
        if single:
            _join(EmbeddingStore(folder), path)
            shutil.rmtree(folder)
    return EmbeddingStore(path)


def images_a_part(encoder: Encoder, transform: FeatureTransform, what: Sequence[str]) -> int:
    """A power of two, so that parts consist of whole forward passes: what is computed never depends on their size."""
    assert transform.size is not None
    patches = (transform.size // encoder.patch_size) ** 2
    readouts = [readout for readout, _ in parse_readouts(what).values()]
    values = encoder.embed_dim * sum(patches if readout == PATCHES else 1 for readout in readouts)
    fitting = max(1, MOST_BYTES // (4 * values))
    return int(max(transform.tile(encoder), min(MOST_IMAGES, 2 ** (fitting.bit_length() - 1))))


@dataclass
class _Writing:
    """One collection's way to disk. Parts are coded and written by a thread while the model is at the next."""

    encoder: Encoder
    source: ImageSource
    folder: Path
    manifest: Manifest
    features: Path | None

    def run(self, work: Work) -> None:
        """Compute and write what is missing, then say in the manifest that all is there."""
        for draft in self.folder.glob(".*.writing"):
            draft.unlink()  # of a process that was killed
        _write_manifest(self.folder, self.manifest)
        journal = Journal(self.folder, [self.manifest.deciding()])
        count, what = len(self.source), self.manifest.what
        size = images_a_part(self.encoder, self.manifest.transform, what)
        starts = range(0, count, size)
        missing = [start for start in starts if journal.get(str(start)) is None]
        with (
            ThreadPoolExecutor(max_workers=1) as thread,
            progress_bar(f"{self.source.name}: embeddings", count, work.progress) as advance,
        ):
            advance(count - sum(min(size, count - start) for start in missing))
            writing: Future[None] | None = None
            for start, batches in self._parts(missing, size, work):
                if writing is not None:
                    writing.result()
                writing = thread.submit(self._write, journal, start, batches)
                advance(min(size, count - start))
            if writing is not None:
                writing.result()
        self._finish({start: journal.get(str(start)) for start in starts}, size)
        journal.remove()

    def _parts(
        self, missing: Sequence[int], size: int, work: Work
    ) -> Iterator[tuple[int, list[EmbeddingBatch]]]:
        """The missing parts: first those that an evaluation kept, then the others, computed in one stream."""
        count, transform = len(self.source), self.manifest.transform
        computed = []
        for start in missing:
            kept = self._kept(start, min(size, count - start))
            if kept:
                yield start, kept
            else:
                computed.append(start)
        left = [np.arange(start, min(start + size, count)) for start in computed]
        order = np.concatenate(left) if left else np.empty(0, np.int64)
        stream = iterate_embeddings(self.encoder, self.source, self.manifest.what, transform, work, order)
        for start in computed:
            batches: list[EmbeddingBatch] = []
            seen = 0
            while seen < min(size, count - start):
                batches.append(next(stream))
                seen += len(batches[-1].indices) + len(batches[-1].unreadable)
            yield start, batches

    def _kept(self, start: int, images: int) -> list[EmbeddingBatch]:
        """What an evaluation left of a part; nothing unless all of it is there."""
        asked = parse_readouts(self.manifest.what)
        if self.features is None or any(readout == PATCHES for readout, _ in asked.values()) or start % SHARD:
            return []
        root = self.features / "features" if (self.features / "features").is_dir() else self.features
        folder = shards_folder(root, self.encoder, self.source, self.manifest.transform)
        batches = []
        for first in range(start, start + images, SHARD):
            shard = read_kept(folder, self.source, list(asked.values()), first)
            if shard is None or len(shard.indices) > start + images - first:
                return []
            vectors = {
                name: shard.vectors[f"{readout}@{layer}"].numpy() for name, (readout, layer) in asked.items()
            }
            bad = [(index, text) for (_, index), text in shard.skipped.images.items()]
            batches.append(EmbeddingBatch(shard.indices, vectors, (0, 0), bad))
        return batches

    def _write(self, journal: Journal, start: int, batches: list[EmbeddingBatch]) -> None:
        """Code and write one part, then enter it."""
        index = np.concatenate([batch.indices for batch in batches])
        columns: dict[str, Coded] = {}
        errors: dict[str, CodingError] = {}
        for name in self.manifest.what if len(index) else ():
            rows = np.concatenate([batch.vectors[name] for batch in batches if name in batch.vectors])
            if self.manifest.unit:
                rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True).clip(min=1e-12)
            columns[name] = coded(rows, self.manifest.stored)
            errors[name] = CodingError.of(rows, columns[name])
        labels = None if self.source.labels is None else np.asarray(self.source.labels)[index]
        portion = Part(index, [self.source.key(int(i)) for i in index], labels, columns)
        if len(index):
            about = self.manifest.deciding() | {"error": {n: e.stated() for n, e in errors.items()}}
            write_part(self.folder, start, self.manifest.form, portion, about)
        entry = {
            "rows": len(index),
            "error": {name: asdict(error) for name, error in errors.items()},
            "unreadable": [[i, text] for batch in batches for i, text in batch.unreadable],
        }
        journal.add(str(start), entry)

    def _finish(self, entries: dict[int, Any], size: int) -> None:
        parts: list[PartRecord] = []
        unreadable: dict[str, str] = {}
        errors: dict[str, CodingError] = {name: CodingError() for name in self.manifest.what}
        for start, entry in entries.items():
            images = min(size, len(self.source) - start)
            if entry["rows"]:
                parts.append(PartRecord(start=start, images=images, rows=entry["rows"]))
            for name, error in entry["error"].items():
                errors[name] += CodingError(**error)
            unreadable |= {self.source.key(i): text for i, text in entry["unreadable"]}
        stated = {name: error.stated() for name, error in errors.items()}
        settled = {"parts": tuple(parts), "unreadable": unreadable, "error": stated, "complete": True}
        _write_manifest(self.folder, self.manifest.model_copy(update=settled))


def _is_done(path: Path, manifest: Manifest) -> bool:
    """Whether exactly this is there already.

    Raises:
        ConfigError: when a finished file of other content is there: it is not overwritten.
    """
    if not (path / MANIFEST).is_file() and not path.is_file():
        return False
    there = read_manifest(path)
    differing = [key for key, value in manifest.deciding().items() if there.deciding()[key] != value]
    if differing:
        raise ConfigError(
            f"out={path} holds embeddings that differ in {', '.join(differing)}. Choose another out=, or remove it."
        )
    return there.complete


def _check_folder(folder: Path, manifest: Manifest) -> None:
    """A folder for parts is empty, not there yet, or holds the same work unfinished."""
    if (folder / MANIFEST).is_file():
        _is_done(folder, manifest)
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ConfigError(f"out={folder} is a folder that holds something else. Choose another out=.")


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    text = manifest.model_dump_json(indent=1)
    write_atomically(folder / MANIFEST, lambda file: file.write(text.encode()))


def _join(store: EmbeddingStore, path: Path) -> None:
    """Put the parts into one file, a row group each."""
    records = store.manifest.parts
    if not records:
        raise DataError(f"{store.manifest.data}: none of its {store.manifest.images} images could be read.")
    first = pq.read_schema(f"{part_stem(store.path, records[0].start)}.parquet")
    schema = first.with_metadata({METADATA: store.manifest.model_dump_json()})

    def write(file: Any) -> None:
        with pq.ParquetWriter(file, schema) as writer:
            for record in records:
                table = pq.read_table(f"{part_stem(store.path, record.start)}.parquet")
                writer.write_table(table.cast(schema), row_group_size=max(1, record.rows))

    write_atomically(path, write)
