"""The examination of a backbone without labels: the same images and the same crops at every step of a run."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from glocal.data import ImageSource, open_source
from glocal.errors import GlocalError
from glocal.extraction.embedding_statistics import alignment, effective_rank, uniformity
from glocal.matching.geometric import teacher_index
from glocal.models.encoder import Encoder
from glocal.models.features import Features
from glocal.models.flops import flop_counter
from glocal.verdict.config import VerdictConfig
from glocal.verdict.figures import (
    correspondence_accuracy,
    high_norm_share,
    position_share,
    retrieval_accuracy,
)
from glocal.verdict.score import score
from glocal.views.augment import augment
from glocal.views.groups import ViewGroup
from glocal.views.loader import ViewDataset
from glocal.views.photometric.colour import ColorJitter, Grayscale
from glocal.views.randomness import hash_seed
from glocal.views.sampling import BatchKey

SHARE_OF_RUN = 0.005
"""Arithmetic that examinations may take; what they cost besides (ranks, copies) fits between this and two hundredths."""
MOST_EXAMINATIONS = 40
PORTION_TOKENS = 64 * 196
_SEED = 20_311


class ViewPair(NamedTuple):
    """A whole image and a distorted crop of it, for many images, and which patch of the whole each crop patch shows."""

    whole: UInt8[Tensor, "images 3 side side"]
    crop: UInt8[Tensor, "images 3 side side"]
    box_whole: Tensor
    box_crop: Tensor
    flip_crop: Tensor

    def right_patches(self, grid: tuple[int, int]) -> Int64[Tensor, "images patches"]:
        """The whole's patch that shows each crop patch's centre, -1 where none does."""
        still = torch.zeros_like(self.flip_crop)
        return teacher_index(self.box_whole, still, grid, self.box_crop, self.flip_crop, grid).patch


class Examination:
    """Fixed images and crops, and what a backbone makes of them. Draws from no generator of the run's.

    >>> Examination(open_source("digits"), None, side=32, images=64).figures(encoder)["score"]  # doctest: +SKIP
    """

    def __init__(
        self, training: ImageSource, held_out: ImageSource | None, *, side: int, images: int = 256
    ) -> None:
        """Decode and crop once: `2 * 3 * side^2` bytes an image are kept, twice that with held-out images.

        Args:
            training: the run's images.
            held_out: images it never sees; null: none, and the training images are examined.
            side: pixels of whole and crop, a multiple of the patch.
            images: how many.
        """
        self.examined = view_pair(held_out if held_out is not None else training, side, images)
        self.seen = view_pair(training, side, len(self.examined.whole)) if held_out is not None else None

    def flops(self, encoder: Encoder) -> float:
        """Floating-point operations of the forward passes of one examination, counted on a single image."""
        pixels = self.examined.whole
        # Past `features`, whose float32 products go to a library that the counter doesn't see.
        with flop_counter() as counted, torch.no_grad():
            encoder.backbone(encoder.normalise(pixels[:1].to(encoder.device)))
        return 2.0 * len(pixels) * float(counted.get_total_flops())

    def figures(self, encoder: Encoder, *, overfitting: bool = False) -> dict[str, float]:
        """All figures by name; with `overfitting`, also how much better training images are found than held-out ones."""
        whole, crop = (_features(encoder, pixels) for pixels in (self.examined.whole, self.examined.crop))
        figures = label_free_figures(whole, crop, self.examined.right_patches(whole.grid))
        if overfitting and self.seen is not None:
            seen = [_features(encoder, pixels).cls for pixels in (self.seen.crop, self.seen.whole)]
            figures["overfitting"] = 100 * float(retrieval_accuracy(*seen)) - figures["retrieval"]
        return figures


def label_free_figures(
    whole: Features, crop: Features, right: Int64[Tensor, "images patches"]
) -> dict[str, float]:
    """The figures of one examination from the features of both views; per cent where they are shares of right answers.

    A model that gives numbers that aren't finite gets NaN for everything: it is named by the diagnosis, not here.
    """
    if not all(bool(torch.isfinite(t).all()) for f in (whole, crop) for t in (f.cls, f.patches)):
        return dict.fromkeys(("retrieval", "correspondence", "rank", "patch_rank", "score"), float("nan"))
    tokens = whole.tokens_before_norm[:, -whole.patches.shape[1] :]
    every_eighth = whole.patches.flatten(0, 1)[:: max(1, whole.patches.shape[1] // 8)]
    rank = float(effective_rank(whole.cls.float()))
    figures = {
        "retrieval": 100 * float(retrieval_accuracy(crop.cls, whole.cls)),
        "correspondence": 100 * float(correspondence_accuracy(crop.patches, whole.patches, right)),
        "rank": rank,
        "rank_share": 100 * rank / min(whole.cls.shape),
        "patch_rank": float(effective_rank(every_eighth.float())),
        "alignment": float(alignment(crop.cls, whole.cls)),
        "uniformity": float(uniformity(whole.cls)),
        "high_norm_share": float(high_norm_share(tokens)),
        "position_share": float(position_share(whole.patches)),
    }
    return {"score": score(figures), **figures}


def prepare(config: VerdictConfig, data: str, training: ImageSource, side: int) -> Examination:
    """The examination of a run on `data`. Held-out images are `config.data`, or the test or validation part of `data`.

    Raises:
        DataError: when `config.data` can't be opened.
    """
    if config.data is not None:
        held_out: ImageSource | None = open_source(config.data)
    else:
        held_out = next(filter(None, (_part(data, split) for split in ("val", "test"))), None)
    return Examination(training, held_out, side=side, images=config.images)


def period(config: VerdictConfig, examination: float, step: float, steps: int) -> int:
    """Steps between examinations of so many FLOPs in a run whose steps take `step`: they take a two-hundredth of the run's
    arithmetic, and there are at most 40.

    >>> period(VerdictConfig(), examination=5e9, step=1e9, steps=10_000)
    1000
    """
    if config.every is not None:
        return config.every
    return max(
        1, math.ceil(examination / (SHARE_OF_RUN * max(step, 1.0))), math.ceil(steps / MOST_EXAMINATIONS)
    )


def view_pair(source: ImageSource, side: int, images: int) -> ViewPair:
    """Whole images and a distorted crop of each, evenly over the source; a pure function of source, side and number."""
    places = np.unique(np.linspace(0, len(source) - 1, min(images, len(source))).astype(np.int64))
    seeds = np.array([hash_seed(_SEED, int(place)) for place in places], dtype=np.int64)
    colours = (ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1), Grayscale(probability=0.2))
    groups = {
        "whole": ViewGroup(count=1, size=side, area=(1.0, 1.0), flip=0.0),
        "crop": ViewGroup(count=1, size=side, area=(0.15, 0.5), photometric=(colours,)),
    }
    loaded = ViewDataset(source, groups).render(BatchKey(places, seeds)).views
    views = augment(loaded, groups, 1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).groups
    whole, crop = (
        (views[name].pixels[:, 0] * 255).round().clamp(0, 255).byte() for name in ("whole", "crop")
    )
    boxes = (views["whole"].box[:, 0], views["crop"].box[:, 0])
    return ViewPair(whole, crop, boxes[0], boxes[1], views["crop"].flip[:, 0])


def _features(encoder: Encoder, pixels: UInt8[Tensor, "images 3 side side"]) -> Features:
    """Features on the CPU, in portions that bound memory."""
    portion = max(1, PORTION_TOKENS * encoder.patch_size**2 // (pixels.shape[2] * pixels.shape[3]))
    parts = [encoder.features(encoder.normalise(p.to(encoder.device))) for p in torch.split(pixels, portion)]
    cls, patches, tokens = (
        torch.cat([getattr(seen, name).float().cpu() for seen in parts])
        for name in ("cls", "patches", "tokens_before_norm")
    )
    return Features(cls, patches, parts[0].grid, tokens)


def _part(data: str, split: str) -> ImageSource | None:
    try:
        return open_source(data, split)
    except GlocalError:
        return None
