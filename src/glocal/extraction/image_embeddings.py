"""One vector an image, kept on disk: interrupted work goes on where it stopped, and protocols read each other's.

Embeddings are stored in shards of 512 images under a folder named by what decides them: model, data, transform and
format. Each readout (`cls@-1`) has files of its own, so a protocol that needs one more computes only that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from glocal.data.source import ImageSource
from glocal.distributed import in_turns, rank
from glocal.errors import ConfigError, DataError, ModelError, nearest_name
from glocal.extraction.feature_files import key_of, read_features, write_features
from glocal.extraction.feature_matrix import allocate, kept_type, write_rows
from glocal.extraction.feature_stream import Skipped, computed_by, iterate_features
from glocal.extraction.progress import progress_bar
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.models.features import Features
from glocal.models.preprocessing import FeatureTransform

SHARD = 512
"""Images a file: so much work can be lost. A multiple of every tile, so that tiles don't depend on the cache."""
FORMAT = 4
"""Layout and arithmetic of the cache; part of its key."""


def gem(patches: Float[Tensor, "images patches dim"], power: float = 4.0) -> Float[Tensor, "images dim"]:
    """Generalised mean over patches, negatives clamped to 1e-6 (DINO's Copydays descriptor has power 4)."""
    return patches.clamp(min=1e-6).pow(power).mean(1).pow(1 / power)


READOUTS: dict[str, Callable[[Features], Tensor]] = {
    "cls": lambda features: features.cls,
    "mean_patches": lambda features: features.patches.mean(1),
    "gem_patches": lambda features: gem(features.patches),
}
"""What one vector is read from a layer's features."""


@dataclass
class Embeddings:
    """Vectors of the readable images, in source order, on the CPU; of several GiB: mapped from a file."""

    vectors: dict[str, Float[Tensor, "images dim"]]
    """By readout as asked for."""
    indices: Int64[np.ndarray, " images"]
    """Their places in the source."""
    labels: Int64[np.ndarray, " images"] | None
    skipped: Skipped = field(default_factory=Skipped)
    side_by_side: Float[Tensor, "images dims"] | None = None
    """The matrix whose columns all vectors are, one after the other; null: they are apart."""
    rounding: float = 0.0
    """How far vectors held in float16 are from what the model gave, as a share of their length."""

    @property
    def first(self) -> Float[Tensor, "images dim"]:
        """The vectors of the first readout."""
        return next(iter(self.vectors.values()))

    def notes(self) -> list[str]:
        """What was left out or rounded, in words."""
        told = f"features held in float16, {100 * self.rounding:.2g} % from what the model gave"
        return [*([told] if self.rounding else []), *self.skipped.notes()]


def extract_embeddings(
    encoder: Encoder,
    source: ImageSource,
    transform: FeatureTransform | None = None,
    what: Sequence[str] = ("cls",),
    work: Work | None = None,
    *,
    allow_half: bool = False,
) -> Embeddings:
    """Embed every image of a source. No more than the result and a shard is held in memory.

    Args:
        encoder: the frozen model.
        source: the images; labels are passed through.
        transform: how they become input; null: the model's size, shorter side resized and central crop.
        what: readouts: `cls`, `mean_patches` or `gem_patches`, with `@-2` for the block before the last, and so on.
        work: cache folder, workers and progress.
        allow_half: from 2 GiB on hold vectors in float16; `notes` says so, with the error.

    Raises:
        ConfigError: for an unknown readout.
        DataError: when no image could be read.
    """
    work = work or Work()
    transform = (transform or FeatureTransform()).resolve(encoder)
    asked = {name: parse_readout(name) for name in what}
    folder = None if work.cache is None else shards_folder(work.cache, encoder, source, transform)
    starts = range(0, len(source), SHARD)
    items = list(dict.fromkeys(asked.values()))
    gathered = _Gathered(source, items, allow_half)
    for start in starts:
        gathered.add(start, _read_shard(folder, start, items))
    missing = [start for start in starts if start not in gathered.counts]
    made = [*items, ALONG] if folder is not None and ("cls", -1) in items and ALONG not in items else items
    compute = functools.partial(_compute, encoder, source, transform, made, work)
    for start, shard in in_turns(compute, missing) if work.together else compute(missing):
        if folder is not None and (rank() == 0 or not work.together):
            _write_shard(folder, start, shard)
        gathered.add(start, shard)
    return gathered.embeddings(asked)


_Item = tuple[str, int]


ALONG: _Item = ("mean_patches", -1)
"""Kept along with the class token, which costs the model nothing: a linear probe that comes after k-NN needs no second
pass. Left out for models without patches."""


@dataclass
class _Shard:
    indices: NDArray[np.int64]
    bad: list[tuple[int, str]]
    vectors: dict[_Item, Tensor]


def parse_readout(name: str, allowed: Sequence[str] = tuple(READOUTS)) -> tuple[str, int]:
    """A readout and its layer.

    Raises:
        ConfigError: for another readout, or a layer that is not counted from the end.

    >>> parse_readout("cls@-2")
    ('cls', -2)
    """
    readout, _, layer = name.partition("@")
    if readout not in allowed:
        hint = nearest_name(readout, allowed)
        raise ConfigError(
            f"There is no readout '{readout}'.{hint} Allowed: {', '.join(allowed)}, each with @LAYER."
        )
    if layer and not (layer.startswith("-") and layer[1:].isdigit() and int(layer) < 0):
        raise ConfigError(f"'{name}': layers are counted from the end, -1 the last; got '{layer}'.")
    return readout, int(layer or -1)


def _compute(
    encoder: Encoder,
    source: ImageSource,
    transform: FeatureTransform,
    items: Sequence[_Item],
    work: Work,
    starts: Sequence[int],
) -> Iterator[tuple[int, _Shard]]:
    """Extract the shards at `starts` in one stream, yielding each when it is complete."""
    if not starts:
        return
    parts = [np.arange(start, min(start + SHARD, len(source))) for start in starts]
    layers = tuple(sorted({layer for _, layer in items}))
    skipped = Skipped()
    stream = iterate_features(
        encoder, source, transform, SHARD, work.workers, np.concatenate(parts), layers, skipped
    )
    total = sum(map(len, parts))
    with progress_bar(f"{source.name}: features", total, work.progress) as advance:
        for start, places in zip(starts, parts, strict=True):
            where: list[NDArray[np.int64]] = []
            rows: dict[_Item, list[Tensor]] = {item: [] for item in items}
            seen = 0
            while seen < len(places):
                batch = next(stream)
                seen += batch.seen
                advance(batch.seen)
                if len(batch.indices):
                    where.append(batch.indices)
                    by_layer = dict(zip(layers, batch.features, strict=True))
                    for item in items:
                        if item == ALONG and by_layer[-1].patches.shape[1] == 0:
                            continue
                        rows[item].append(READOUTS[item[0]](by_layer[item[1]]).float())
            # One copy off the device a shard: nothing waits for the device in between.
            empty = torch.empty(0, encoder.embed_dim)
            vectors = {item: torch.cat(r).cpu() if r else empty for item, r in rows.items()}
            bad = [(i, text) for (_, i), text in skipped.images.items() if places[0] <= i <= places[-1]]
            yield start, _Shard(np.concatenate(where) if where else np.empty(0, np.int64), bad, vectors)


class _Gathered:
    """Shards of any order put together in source order; none is held once it is copied."""

    def __init__(self, source: ImageSource, items: Sequence[_Item], allow_half: bool) -> None:
        self.source, self.items, self.allow_half = source, items, allow_half
        self.counts: dict[int, int] = {}
        self.bad: list[tuple[int, str]] = []
        self.rounding = 0.0
        self._indices = np.empty(len(source), np.int64)
        self._rows: Tensor | None = None
        self._widths: list[int] = []

    def add(self, start: int, shard: _Shard | None) -> None:
        """Copy a shard to the place it would have if all images were readable."""
        if shard is None or start in self.counts:
            return
        count = self.counts[start] = len(shard.indices)
        self.bad += shard.bad
        if not count:
            return
        lacking = [item for item in self.items if len(shard.vectors[item]) != count]
        if lacking:
            raise ModelError(f"The model gives no patches, so there is no '{lacking[0][0]}'. Ask for cls.")
        given = torch.cat([shard.vectors[item] for item in self.items], dim=1)
        if self._rows is None:
            self._widths = [shard.vectors[item].shape[1] for item in self.items]
            kind = kept_type(len(self.source), given.shape[1], self.allow_half)
            self._rows = allocate(len(self.source), given.shape[1], kind)
        self._indices[start : start + count] = shard.indices
        self.rounding = max(self.rounding, write_rows(self._rows, start, given))

    def embeddings(self, asked: dict[str, _Item]) -> Embeddings:
        """All of it, without the gaps that unreadable images leave."""
        skipped = Skipped()
        for index, text in sorted(self.bad):
            skipped.images[(self.source.name, index)] = text
        total = sum(self.counts.values())
        if self._rows is None:
            first = f" The first: {min(self.bad)[1]}" if self.bad else ""
            raise DataError(
                f"{self.source.name}: none of its {len(self.source)} images could be read.{first}"
            )
        if self.bad:
            self._close_gaps(self._rows)
        rows, indices = self._rows[:total], self._indices[:total]
        by_item = dict(zip(self.items, torch.split(rows, self._widths, dim=1), strict=True))
        vectors = {name: by_item[item] for name, item in asked.items()}
        labels = None if self.source.labels is None else np.asarray(self.source.labels)[indices]
        joined = rows if len(asked) == len(self.items) else None
        return Embeddings(vectors, indices, labels, skipped, joined, self.rounding)

    def _close_gaps(self, rows: Tensor) -> None:
        end = 0
        for start, count in sorted(self.counts.items()):
            if start != end:
                rows[end : end + count] = rows[start : start + count].clone()
                self._indices[end : end + count] = self._indices[start : start + count].copy()
            end += count


def images_to_embed(
    encoder: Encoder,
    source: ImageSource,
    transform: FeatureTransform,
    what: Sequence[str],
    cache: Path | None,
) -> int:
    """Images that `extract_embeddings` would have to pass through the model: those that were not kept."""
    if cache is None:
        return len(source)
    folder, items = (
        shards_folder(cache, encoder, source, transform.resolve(encoder)),
        set(map(parse_readout, what)),
    )
    starts = range(0, len(source), SHARD)
    missing = [s for s in starts if not all(_shard_path(folder, s, item).exists() for item in items)]
    return sum(min(SHARD, len(source) - start) for start in missing)


def features_gib(images: int, width: int, allow_half: bool) -> float:
    """What so many vectors take in `Embeddings`, in memory or mapped."""
    return images * width * kept_type(images, width, allow_half).itemsize / 2**30


def read_kept(folder: Path, source: ImageSource, items: Sequence[_Item], start: int) -> Embeddings | None:
    """What `extract_embeddings` kept of the `SHARD` images from `start` on; None unless every readout is there, whole.

    Vectors are named by readout and layer, `cls@-1`.
    """
    shard = _read_shard(folder, start, items)
    if shard is None:
        return None
    skipped = Skipped()
    skipped.images.update({(source.name, index): text for index, text in shard.bad})
    vectors = {f"{readout}@{layer}": shard.vectors[readout, layer] for readout, layer in items}
    return Embeddings(vectors, shard.indices, None, skipped)


def shards_folder(cache: Path, encoder: Encoder, source: ImageSource, transform: FeatureTransform) -> Path:
    """Where the embeddings by a model of a source are kept; `transform` is resolved."""
    deciding = [FORMAT, SHARD, *computed_by(encoder), source.state(), len(source), transform.model_dump()]
    return cache / key_of(deciding)


def _shard_path(folder: Path, start: int, item: _Item) -> Path:
    return folder / f"{item[0]}@{item[1]}-{start:09d}.safetensors"


def _read_shard(folder: Path | None, start: int, items: Sequence[_Item]) -> _Shard | None:
    """Read a shard when every readout of it is there and whole."""
    if folder is None:
        return None
    shard = _Shard(np.empty(0, np.int64), [], {})
    for item in items:
        features = read_features(_shard_path(folder, start, item))
        if features is None:
            return None
        shard.vectors[item], shard.indices, shard.bad = (
            features.tensors["vectors"], features.tensors["indices"].numpy(), features.bad,
        )  # fmt: skip
    return shard


def _write_shard(folder: Path, start: int, shard: _Shard) -> None:
    for item, vectors in shard.vectors.items():
        if len(vectors) != len(shard.indices):
            continue
        tensors = {"vectors": vectors, "indices": torch.from_numpy(shard.indices)}
        write_features(_shard_path(folder, start, item), tensors, shard.bad)
