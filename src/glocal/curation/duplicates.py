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

from glocal.curation.candidates import Thumbnails, candidate_pairs, thumbnails
from glocal.data.source import ImageSource
from glocal.errors import ConfigError
from glocal.extraction.progress import progress_bar
from glocal.lookup.bank import Engine
from glocal.lookup.index import Index, index
from glocal.matching.alignment import align_pictures
from glocal.matching.placement import Placements, place_patches
from glocal.models.encoder import Encoder
from glocal.models.precision import AskedPrecision

ALIGNED = 3
"""Best pairs by patches of each image whose pictures are laid on each other; all above `SURE` are, too."""
SURE = 0.5
_PRODUCTS, _PORTION = 2**22, 1024
"""Of patches, and pairs, held at once: 16 MiB, and up to 50 of aligned pictures."""
_ROUNDS = 20


@dataclass(frozen=True)
class Pair:
    """Two rows of the index, how well they agree, and the patches that do."""

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

    Candidates of an image are its nearest by class embedding, by a grey thumbnail and by its quarters. Patches say where one
    image lies in the other, and how much of both agrees on that (`place_patches`); the thumbnails are laid on each other
    there and correlated (`align_pictures`). A pair's score is the mean of both. The threshold is the score that a share
    `rate` of images without a copy would reach (`calibrated_threshold`).

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
    grey = thumbnails(made, workers)
    aligned, scores = _scored(made, candidate_pairs(made, grey, candidates, engine), grey, progress)
    threshold = calibrated_threshold(best_of_each(aligned, scores, made.alive), rate)
    above = np.flatnonzero(scores > threshold)
    pairs = _with_evidence(made, aligned[above], scores[above], progress)
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
        estimate = float(high + (high - low) * (wanted - upper) / (upper - middle))
        if estimate >= threshold:
            break
        threshold = estimate
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


def worth_aligning(
    pairs: Int64[np.ndarray, "pairs 2"], scores: Float[np.ndarray, " pairs"]
) -> Int64[np.ndarray, " chosen"]:
    """Which pairs are looked at in pixels: the best of every image by patches, and all that agree on half of what they show."""
    images, numbers = pairs.T.ravel(), np.tile(np.arange(len(pairs)), 2)
    order = np.lexsort((-scores[numbers], images))
    images, numbers = images[order], numbers[order]
    place = np.arange(len(images)) - np.searchsorted(images, images)
    chosen: NDArray[np.int64] = np.union1d(numbers[place < ALIGNED], np.flatnonzero(scores > SURE))
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


def _scored(
    made: Index, pairs: Int64[np.ndarray, "pairs 2"], grey: Thumbnails, progress: bool
) -> tuple[Int64[np.ndarray, "kept 2"], Float[np.ndarray, " kept"]]:
    """The pairs that were aligned, and the mean of how well patches and pictures agree."""
    by_patches = [placed.score.numpy() for placed in _placed(made, pairs, "comparing patches", progress)]
    aligned = pairs[worth_aligning(pairs, np.concatenate([np.empty(0, np.float32), *by_patches]))]
    scores, start = [np.empty(0)], 0
    for placed in _placed(made, aligned, "aligning pictures", progress):
        one, other = torch.from_numpy(aligned[start : start + len(placed.score)]).unbind(1)
        pictures = align_pictures(grey[one].float(), grey[other].float(), placed.where)
        scores.append((placed.score + pictures.correlation.clamp(min=0)).double().numpy() / 2)
        start += len(one)
    return aligned, np.concatenate(scores)


def _placed(made: Index, pairs: NDArray[np.int64], doing: str, progress: bool) -> Iterator[Placements]:
    """Placements of pairs of rows, some at a time."""
    grid, bank = made.about.grid, made.patch_bank("exact")
    each = grid[0] * grid[1]

    def patches_of(rows: NDArray[np.int64]) -> Tensor:
        places = (rows[:, None] * each + np.arange(each)).ravel()
        return bank.take(places).view(len(rows), each, -1)

    portion = max(1, min(_PORTION, _PRODUCTS // each**2))
    with progress_bar(doing, len(pairs), progress, unit="pairs") as advance:
        for start in range(0, len(pairs), portion):
            batch = pairs[start : start + portion]
            yield place_patches(patches_of(batch[:, 0]), patches_of(batch[:, 1]), grid)
            advance(len(batch))


def _with_evidence(
    made: Index, pairs: NDArray[np.int64], scores: NDArray[np.float64], progress: bool
) -> list[Pair]:
    """Pairs with the patches that agree, the most certain pair first."""
    certain = []
    rows = iter(zip(pairs.tolist(), scores.tolist(), strict=True))
    for placed in _placed(made, pairs, "collecting evidence", progress):
        for second, agrees, cosine in zip(placed.second, placed.agrees, placed.cosine, strict=True):
            agree = agrees.nonzero()[:, 0]
            agree = agree[cosine[agree].argsort(descending=True, stable=True)]
            patches = tuple(zip(agree.tolist(), second[agree].tolist(), strict=True))
            (one, other), score = next(rows)
            certain.append(Pair(one, other, score, patches))
    return sorted(certain, key=lambda pair: -pair.score)
