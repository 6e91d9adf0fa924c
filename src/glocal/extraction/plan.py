"""What an evaluation will take, said before it starts: images, disk, and time measured on the first of them."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

import torch

from glocal.data.source import ImageSource
from glocal.extraction.feature_matrix import MAPPED_FROM
from glocal.extraction.feature_stream import iterate_pixels
from glocal.extraction.progress import in_words
from glocal.models.encoder import Encoder
from glocal.models.preprocessing import FeatureTransform

MEASURED_SHARE = 0.02
"""Two forward passes are timed only where they are at most this share of all."""
TOLD_FROM = 60.0
"""Seconds from which a plan is told; one of a mapped matrix of features is told in any case."""

logger = logging.getLogger("glocal.extraction")


class Plan(NamedTuple):
    """What is ahead. Seconds are those of this machine, as busy as it is while they are measured."""

    images: int
    gib: float
    embedding: float
    """Seconds for the images, decoding included."""
    answering: float
    """Seconds for the protocol's own arithmetic."""

    def told(self) -> str:
        """In words."""
        where = "on disk in TMPDIR, mapped" if self.gib * 2**30 >= MAPPED_FROM else "of memory"
        return (
            f"{self.images:,} images to embed, features take {self.gib:.1f} GiB {where}; "
            f"about {in_words(self.embedding)} for the images, {in_words(self.answering)} for the rest"
        )


def tell_plan(
    title: str,
    encoder: Encoder,
    source: ImageSource,
    transform: FeatureTransform,
    workers: int,
    *,
    images: int,
    gib: float,
    operations: float = 0.0,
) -> Plan | None:
    """Estimate and log what an evaluation takes; None where that is too little to tell.

    Costs two forward passes and three small products of matrices, at most a fiftieth of what is ahead.

    Args:
        title: what is evaluated.
        encoder: the frozen model.
        source: images like those that it will see.
        transform: how they become input.
        workers: processes that will decode.
        images: how many will pass the model.
        gib: what their features take.
        operations: of the protocol's own arithmetic, in floating point.
    """
    transform = transform.resolve(encoder)
    timed = images * MEASURED_SHARE >= 2 * transform.tile(encoder)
    embedding = images * seconds_an_image(encoder, source, transform, workers) if timed else 0.0
    answering = operations / operations_a_second(encoder.device) if operations else 0.0
    if embedding + answering < TOLD_FROM and gib * 2**30 < MAPPED_FROM:
        return None
    plan = Plan(images, gib, embedding, answering)
    logger.info("%s: %s", title, plan.told())
    return plan


def seconds_an_image(
    encoder: Encoder, source: ImageSource, transform: FeatureTransform, workers: int = 0
) -> float:
    """Decoding and one forward pass, measured on the second of two tiles; of workers the slower of both decides."""
    tile = transform.tile(encoder)
    began = time.perf_counter()
    first = iterate_pixels(
        source, transform, encoder.patch_size, indices=range(min(2 * tile, len(source))), batch_size=tile
    )
    tiles = [batch.pixels for batch in first if len(batch.indices)]
    decoding = (time.perf_counter() - began) / max(1, sum(map(len, tiles)))
    passing = 0.0
    for pixels in tiles:
        began = time.perf_counter()
        encoder.features(encoder.normalise(pixels.to(encoder.device))).cls.cpu()
        passing = (time.perf_counter() - began) / len(pixels)
    return max(decoding / workers, passing) if workers else decoding + passing


def operations_a_second(device: torch.device) -> float:
    """Floating-point operations a second of a product of two float32 matrices, 8 MB each."""
    one, other = torch.randn(2048, 1024, device=device), torch.randn(1024, 2048, device=device)
    for _ in range(3):  # the last counts
        began = time.perf_counter()
        float((one @ other)[0, 0])
        taken = time.perf_counter() - began
    return 2 * 2048 * 2048 * 1024 / taken
