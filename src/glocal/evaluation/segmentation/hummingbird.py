"""Hummingbird: segmentation by retrieval from a memory of labelled patches, with exact search.

Balazevic et al. 2023, "Towards in-context scene understanding", section 3.1 and appendix; the memory follows the
open re-implementation, whose defects (crop areas above 1, a mistyped deviation, relabelling of predictions that are
class ids already, the ignored class counted in the mean) are not repeated.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from glocal.errors import ConfigError
from glocal.evaluation.base import DataLike
from glocal.evaluation.results import Result
from glocal.evaluation.segmentation.dense_features import (
    DenseConfig,
    PatchReader,
    Scoring,
    best_class,
    class_shares,
    cut_mask,
    upsample,
)
from glocal.evaluation.segmentation.masks import SegmentationData, open_train_and_test
from glocal.extraction.nearest import nearest
from glocal.extraction.random_crops import RandomCrops
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.views.randomness import hash_seed, uniform_array


def rarity_scores(
    shares: Float[np.ndarray, "patches classes"], uniform: Float[np.ndarray, " patches"]
) -> Float[np.ndarray, " patches"]:
    """Score an image's patches for the memory; the smallest are kept, so patches with rare classes are preferred.

    A patch's score is the number of the image's patches that hold each of its classes, summed over its classes, times
    its uniform draw. A patch without a scored pixel gets infinity.
    """
    present = shares > 0
    score: np.ndarray = np.where(present.any(1), (present * present.sum(0)).sum(1) * uniform, np.inf)
    return score


def soft_vote(
    similarity: Float[Tensor, "queries k"], labels: Float[Tensor, "queries k classes"], temperature: float
) -> Float[Tensor, "queries classes"]:
    """Average the neighbours' soft labels, weighted by softmax(similarity / temperature)."""
    weights = (similarity / temperature).softmax(dim=1)
    return torch.einsum("qk,qkc->qc", weights, labels)


class LabelledPatches(NamedTuple):
    """The memory: features of unit length and the share of each class inside the patch."""

    features: Float[Tensor, "entries dim"]
    shares: Float[Tensor, "entries classes"]


class Hummingbird(DenseConfig):
    """Retrieval segmentation, scored at the masks' own size.

    Departures from the reference: exact search; ignored pixels are left out of a patch's label and patches holding
    nothing else are not stored (the reference calls them background on VOC); passes after the first see a random crop
    of 0.25 to 1 of the area, perhaps mirrored, squashed to the same size.
    """

    protocol: ClassVar[str] = "hummingbird"

    size: int | None = 512
    """Side in pixels that images are squashed to, a multiple of the patch (504 for /14); null: the model's own."""
    memory: int = 102_400
    """Entries of the memory, shared out evenly among training images and passes. Papers use 10,240,000."""
    passes: int = 2
    """Times the training images are seen: once as they are, then as random crops."""
    neighbours: int = 30
    """Entries that vote for a patch."""
    temperature: float = 0.02
    """Of the softmax over similarities."""
    seed: int = 0
    """Decides crops and which patches are kept."""

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Fill the memory from train, then label every patch of the test split by its nearest entries."""
        if min(self.memory, self.passes, self.neighbours) < 1 or self.temperature <= 0:
            raise ConfigError("memory, passes and neighbours must be 1 or more, temperature above 0.")
        train, test = open_train_and_test(data, self.ignore, self.num_classes)
        reader = self.reader(encoder, work)
        memory = self.fill(reader, train)
        scoring = Scoring(test)
        for image in reader.images(test, title="retrieval"):
            queries = F.normalize(image.patches, dim=1)
            similarity, places = nearest(queries, memory.features, self.neighbours)
            shares = soft_vote(similarity, memory.shares[places], self.temperature)
            scoring.add(image.mask, best_class(upsample(shares, image.grid, image.mask.shape)))
        return self.scored(
            reader,
            train,
            scoring,
            picked={"entries": len(memory.features)},
            resolution=f"{reader.side} squash, scored at the masks' size",
            features="patches, unit length",
        )

    def fill(self, reader: PatchReader, train: SegmentationData) -> LabelledPatches:
        """Collect the memory. Every image gives each pass its quota, fewer when it has fewer scored patches."""
        quotas = _quotas(self.memory, len(train) * self.passes)
        features, shares = [], []
        for number in range(self.passes):
            seen = train if number == 0 else _cropped(train, self.seed, number)
            for image in reader.images(seen, title=f"memory, pass {number + 1}"):
                pixels = cut_mask(image.mask, image.grid, reader.encoder.patch_size)
                label = class_shares(pixels, train.num_classes)
                quota = int(quotas[number * len(train) + image.place])
                kept = self._select(label, number, image.place, quota)
                chosen = image.patches[torch.from_numpy(kept).to(image.patches.device)]
                features.append(F.normalize(chosen, dim=1))
                shares.append(torch.from_numpy(label[kept]))
        memory = torch.cat(features)
        return LabelledPatches(memory, torch.cat(shares).to(memory.device))

    def _select(
        self, label: Float[np.ndarray, "patches classes"], number: int, index: int, quota: int
    ) -> NDArray[np.int64]:
        """Places of the `quota` patches with the smallest rarity score, in their order on the grid."""
        seed = np.array(hash_seed(self.seed, 1, number, index)).astype(np.uint64)
        scores = rarity_scores(label, uniform_array(seed, len(label)))
        order = np.argsort(scores, kind="stable")[:quota]
        return np.sort(order[np.isfinite(scores[order])])


def _quotas(entries: int, shares: int) -> NDArray[np.int64]:
    """Share out `entries` so that no two shares differ by more than one."""
    edges = np.arange(shares + 1) * entries // shares
    return np.diff(edges)


def _cropped(train: SegmentationData, seed: int, number: int) -> SegmentationData:
    return replace(
        train, source=RandomCrops(train.checked().source, hash_seed(seed, 2), number, area=(0.25, 1.0))
    )
