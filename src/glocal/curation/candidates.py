"""Pairs of images that may be copies: near by class embedding, by a grey thumbnail, or by a quarter of it."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from glocal.extraction.feature_stream import iterate_pixels
from glocal.extraction.nearest import nearest
from glocal.lookup.bank import Engine
from glocal.lookup.index import Index
from glocal.models.preprocessing import FeatureTransform

SIDE = 32
"""Pixels of the side of the grey thumbnails: a KiB an image. At half the side they propose, at the whole they are aligned."""
_PORTION = 4096

Thumbnails = UInt8[Tensor, "rows side side"]


def candidate_pairs(
    made: Index, grey: Thumbnails, count: int, engine: Engine
) -> Int64[np.ndarray, "pairs 2"]:
    """Pairs of living rows to be looked at, each once, lower row first: `count` of each image by each way of being near."""
    alive, bank = np.flatnonzero(made.alive), made.bank(engine)
    near = [np.empty((0, 2), np.int64)]
    for start in range(0, len(alive), _PORTION):
        portion = alive[start : start + _PORTION]
        near.append(_pairs(portion, bank.nearest(bank.take(portion), count + 1).rows.numpy()))
    if len(alive) > 1:
        small = F.avg_pool2d(grey[alive].float()[:, None], 2)[:, 0]
        half = small.shape[-1] // 2
        quarters = [small[:, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
        # A copy may be covered in places: each quarter proposes, too.
        for pictures in (small, *quarters):
            unit = F.normalize((pictures - pictures.mean((1, 2), keepdim=True)).flatten(1), dim=1)
            near.append(_pairs(alive, alive[nearest(unit, unit, count, leave_one_out=True).rows.numpy()]))
    pairs = np.sort(np.concatenate(near), axis=1)
    unique: NDArray[np.int64] = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    return unique


def thumbnails(made: Index, workers: int) -> Thumbnails:
    """Grey pictures of all rows, black for those that are gone or can't be read any more."""
    transform = FeatureTransform(resize="squash", size=SIDE, crop_fraction=1.0)
    rows = np.flatnonzero(made.alive)
    row_at = dict(zip(made.places[rows].tolist(), rows.tolist(), strict=True))
    grey = torch.zeros(len(made.alive), SIDE, SIDE, dtype=torch.uint8)
    for batch in iterate_pixels(
        made.source, transform, SIDE, workers=workers, indices=made.places[rows], batch_size=256
    ):
        if len(batch.indices):
            grey[[row_at[int(i)] for i in batch.indices]] = batch.pixels.float().mean(1).round().byte()
    return grey


def _pairs(rows: NDArray[np.int64], near: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each row with each of those near it."""
    return np.stack([np.repeat(rows, near.shape[1]), near.ravel()], 1)
