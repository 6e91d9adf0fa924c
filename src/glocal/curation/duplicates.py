"""Groups of near-duplicates and edited copies in a collection, by a threshold that the collection itself sets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from glocal.data.source import ImageSource
from glocal.errors import ConfigError
from glocal.extraction.feature_stream import iterate_pixels
from glocal.extraction.nearest import nearest
from glocal.extraction.progress import progress_bar
from glocal.lookup.bank import Engine
from glocal.lookup.index import Index, index
from glocal.matching.placement import Placements, place_patches
from glocal.models.encoder import Encoder
from glocal.models.precision import AskedPrecision
from glocal.models.preprocessing import FeatureTransform

THUMBNAIL = 16
"""Pixels of the side of the grey thumbnails that propose candidates beside the class embeddings."""
_PRODUCTS = 2**22
"""Of patches, held at once: 16 MiB."""
_ROUNDS = 20


@dataclass(frozen=True)
class Pair:
    """Two rows of the index, the score of their placement, and the patches that agree on it."""

    first: int
    second: int
    score: float
    patches: tuple[tuple[int, int], ...] = ()
    """(patch of the first, patch of the second), the most alike first."""


@dataclass
class Duplicates:
    """Groups of images that are copies of each other, directly or through others."""

    index: Index
    groups: list[list[int]]
    """Rows of the index, the largest group first."""
    pairs: list[Pair]
    """Every pair above the threshold, the most certain first."""
    threshold: float
    rate: float
    """Share of images without a copy that are expected to be given one."""

    def keys(self) -> list[list[str]]:
        """The groups by the source's names."""
        return [[self.index.key(row) for row in group] for group in self.groups]

    def surplus(self) -> list[str]:
        """All but the first of every group: what to leave out."""
        return [key for group in self.keys() for key in group[1:]]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        named = {pair: (self.index.key(pair.first), self.index.key(pair.second)) for pair in self.pairs}
        return {
            "false_match_rate": self.rate,
            "threshold": self.threshold,
            "groups": self.keys(),
            "pairs": [
                {"images": list(named[p]), "score": p.score, "matches": len(p.patches)} for p in self.pairs
            ],
        }


def duplicates(
    model: str | Path | Encoder,
    data: str | Path | ImageSource,
    out: str | Path,
    *,
    rate: float = 0.001,
    candidates: int = 10,
    split: str | None = None,
    size: int | None = None,
    engine: Engine = "auto",
    device: str = "auto",
    precision: AskedPrecision = "float32",
    workers: int = 0,
    progress: bool = True,
) -> Duplicates:
    """Find near-duplicates and edited copies.

    Candidates of an image are its nearest by class embedding, by a grey thumbnail and by its quarters. A pair's score is
    how much of the images agrees on one placement, patch by patch (`place_patches`). The threshold is the score that a
    share `rate` of images without a copy would reach (`calibrated_threshold`).

    Args:
        model: what `glocal.load` reads, or a loaded encoder.
        data: anything `open_source` reads, or an open source.
        out: a folder; the index in it is brought up to date when the command is run again.
        rate: false-match rate: share of images without a copy that may be given one.
        candidates: nearest images looked at, by each of these.
        split: train, val or test, where the data has them.
        size: side of the model's input in pixels; null: the model's own.
        engine: how neighbours are found.
        device: cpu, cuda; auto: the first GPU.
        precision: of the forward pass.
        workers: processes that decode.
        progress: show how far it is.

    Raises:
        ConfigError: for a rate outside 0 to 0.2.
        DataError: when the data can't be opened.

    >>> duplicates("runs/a", "photos", "photos.copies").keys()  # doctest: +SKIP
    [['a/1.jpg', 'b/1 (copy).jpg']]
    """
    if not 0 < rate < 0.2:
        raise ConfigError(f"rate={rate}: the false-match rate is a share above 0 and below 0.2.")
    made = index(
        model, data, Path(out) / "index", patches=True, split=split, size=size,
        device=device, precision=precision, workers=workers, progress=progress,
    )  # fmt: skip
    if isinstance(data, ImageSource):
        made.source = data
    proposed = _candidates(made, candidates, engine, workers)
    scores = np.concatenate(
        [np.empty(0), *(placed.score.numpy() for placed in _placed(made, proposed, progress))]
    )
    threshold = calibrated_threshold(best_of_each(proposed, scores, made.alive), rate)
    above = np.flatnonzero(scores > threshold)
    pairs = _with_evidence(made, proposed[above], progress)
    return Duplicates(made, groups_of(pairs), pairs, threshold, rate)


def calibrated_threshold(best: Float[np.ndarray, " images"], rate: float) -> float:
    """The score that a share `rate` of images without a copy reaches with their best candidate.

    An image's best score is a maximum over unrelated images, whose law is Gumbel's (extreme values, type I). Its place and
    scale are read from the median and the 80 % quantile of the images' best scores, and it is continued to `rate`. Images
    above the threshold are taken for copies and left out, and it is found again, until it stays. No label is needed; up to
    a seventh of the images may have copies.

    >>> round(calibrated_threshold(np.random.default_rng(0).gumbel(0.4, 0.05, 10_000), 0.001), 2)
    0.74
    """
    middle, upper, wanted = (-math.log(-math.log(share)) for share in (0.5, 0.8, 1 - rate))
    threshold = math.inf
    for _ in range(_ROUNDS):
        low, high = np.quantile(best[best <= threshold], [0.5, 0.8])
        found = float(high + (high - low) * (wanted - upper) / (upper - middle))
        if found >= threshold:
            break
        threshold = found
    return threshold


def best_of_each(
    pairs: Int64[np.ndarray, "pairs 2"], scores: Float[np.ndarray, " pairs"], alive: Bool[np.ndarray, " rows"]
) -> Float[np.ndarray, " images"]:
    """Each living image's best score; 0 for one without a candidate."""
    best = np.zeros(len(alive))
    np.maximum.at(best, pairs[:, 0], scores)
    np.maximum.at(best, pairs[:, 1], scores)
    chosen: NDArray[np.float64] = best[alive]
    return chosen


def groups_of(pairs: list[Pair]) -> list[list[int]]:
    """Connected images, each group in order, the largest group first.

    >>> groups_of([Pair(3, 1, 1.0), Pair(1, 7, 1.0), Pair(4, 5, 1.0)])
    [[1, 3, 7], [4, 5]]
    """
    root: dict[int, int] = {}

    def find(row: int) -> int:
        while root.setdefault(row, row) != row:
            root[row] = row = root[root[row]]
        return row

    for pair in pairs:
        one, other = find(pair.first), find(pair.second)
        root[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = {}
    for row in sorted(root):
        groups.setdefault(find(row), []).append(row)
    return sorted(groups.values(), key=lambda group: (-len(group), group))


def _candidates(made: Index, count: int, engine: Engine, workers: int) -> Int64[np.ndarray, "pairs 2"]:
    """Pairs of rows to be looked at, each once, lower row first."""
    alive = np.flatnonzero(made.alive)
    bank = made.bank(engine)
    found = []
    for start in range(0, len(alive), 4096):
        part = alive[start : start + 4096]
        near = bank.nearest(bank.take(part), count + 1).rows.numpy()
        found.append(np.stack([np.repeat(part, near.shape[1]), near.ravel()], 1))
    rows, grey = _thumbnails(made, workers)
    if len(rows) > 1:
        half = THUMBNAIL // 2
        quarters = [grey[:, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
        # A copy may be covered in places: each quarter proposes, too.
        for thumbnails in (grey, *quarters):
            unit = F.normalize((thumbnails - thumbnails.mean((1, 2), keepdim=True)).flatten(1), dim=1)
            near = rows[nearest(unit, unit, count, leave_one_out=True).rows.numpy()]
            found.append(np.stack([np.repeat(rows, near.shape[1]), near.ravel()], 1))
    pairs = np.sort(np.concatenate(found), axis=1) if found else np.empty((0, 2), np.int64)
    unique: NDArray[np.int64] = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    return unique


def _thumbnails(made: Index, workers: int) -> tuple[NDArray[np.int64], Float[Tensor, "images height width"]]:
    """Rows, and their grey thumbnails."""
    transform = FeatureTransform(resize="squash", size=THUMBNAIL, crop_fraction=1.0)
    rows = np.flatnonzero(made.alive)
    row_at = dict(zip(made.places[rows].tolist(), rows.tolist(), strict=True))
    where, grey = [], []
    for batch in iterate_pixels(
        made.source, transform, THUMBNAIL, workers=workers, indices=made.places[rows], batch_size=256
    ):
        if len(batch.indices):
            where += [row_at[int(i)] for i in batch.indices]
            grey.append(batch.pixels.float().mean(1))
    empty = torch.empty(0, THUMBNAIL, THUMBNAIL)
    return np.array(where, np.int64), torch.cat(grey) if grey else empty


def _placed(made: Index, pairs: NDArray[np.int64], progress: bool) -> Iterator[Placements]:
    """Placements of pairs of rows, some at a time."""
    grid, bank = made.about.grid, made.patch_bank("exact")
    each = grid[0] * grid[1]

    def patches_of(rows: NDArray[np.int64]) -> Tensor:
        places = (rows[:, None] * each + np.arange(each)).ravel()
        return bank.take(places).view(len(rows), each, -1)

    portion = max(1, _PRODUCTS // each**2)
    with progress_bar("comparing patches", len(pairs), progress, unit="pairs") as advance:
        for start in range(0, len(pairs), portion):
            part = pairs[start : start + portion]
            yield place_patches(patches_of(part[:, 0]), patches_of(part[:, 1]), grid)
            advance(len(part))


def _with_evidence(made: Index, pairs: NDArray[np.int64], progress: bool) -> list[Pair]:
    """Pairs with the patches that agree, the most certain pair first."""
    certain = []
    rows = iter(pairs.tolist())
    for placed in _placed(made, pairs, progress):
        for score, second, agrees, cosine in zip(*placed, strict=True):
            agree = agrees.nonzero()[:, 0]
            agree = agree[cosine[agree].argsort(descending=True, stable=True)]
            patches = tuple(zip(agree.tolist(), second[agree].tolist(), strict=True))
            one, other = next(rows)
            certain.append(Pair(one, other, float(score), patches))
    return sorted(certain, key=lambda pair: -pair.score)
