"""k-NN segmentation: every patch takes, pixel by pixel, the majority class of its nearest training patches.

The protocol of CAPI (Darcet et al. 2025, section 4): no training, no augmentation, few settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from glocal.errors import ConfigError, DataError
from glocal.evaluation.base import DataLike
from glocal.evaluation.results import Result
from glocal.evaluation.segmentation.dense_features import (
    DenseConfig,
    PatchReader,
    Scoring,
    cut_mask,
    standardisation,
)
from glocal.evaluation.segmentation.masks import SegmentationData, open_train_and_test
from glocal.evaluation.segmentation.metrics import IGNORED, confusion_matrix, segmentation_score
from glocal.extraction.nearest import Distance, nearest
from glocal.extraction.progress import progress_bar
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder


def majority(labels: UInt8[Tensor, "queries k pixels"], classes: int) -> UInt8[Tensor, "queries pixels"]:
    """Return the most frequent class among the neighbours, pixel by pixel; ties go to the lowest class.

    Ignored pixels (255) have no vote; where all are ignored the answer is class 0.
    """
    best = torch.zeros_like(labels[:, 0])
    most = torch.zeros(best.shape, dtype=torch.int16, device=labels.device)
    for number in range(classes):
        votes = (labels == number).sum(1, dtype=torch.int16)
        best = torch.where(votes > most, torch.full_like(best, number), best)
        most = torch.maximum(most, votes)
    return best


class PatchMemory(NamedTuple):
    """Standardised training patches and the classes of their pixels."""

    features: Float[Tensor, "entries dim"]
    labels: UInt8[Tensor, "entries pixels"]
    images: Int64[Tensor, " entries"]


class KnnSegmentation(DenseConfig):
    """k-NN segmentation in CAPI's form: squash, standardised patches, `k` and distance chosen on a part of train.

    Departures from the reference: the validation part is the last tenth of the training list, not a random one, since
    frames of one film would otherwise sit on both sides; a neighbour's ignored pixels have no vote; the chosen setting
    searches all of train. Scored at the squashed size, like the reference: compare with no full-resolution number.
    """

    protocol: ClassVar[str] = "knn-seg"

    size: int | None = 224
    """Side in pixels that images are squashed to, a multiple of the patch; null: the model's own."""
    neighbours: tuple[int, ...] = (1, 3, 10, 30)
    """Values of k tried on the validation part."""
    distances: tuple[Distance, ...] = ("cosine", "L2")
    """Distances tried on the validation part."""
    every: int = 1
    """Keep every n-th training patch, where the memory would not fit or take too long."""

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Fill the memory from train, choose k and distance on its last tenth, score the test split."""
        if not self.neighbours or min(self.neighbours) < 1 or not self.distances or self.every < 1:
            raise ConfigError(
                "neighbours and distances need at least one value, and neighbours and every are >= 1."
            )
        train, test = open_train_and_test(data, self.ignore, self.num_classes)
        reader = self.reader(encoder, work)
        memory, mean, deviation = self._memory(reader, train)
        chosen, tried = self._choose(memory, train.num_classes, work)
        k, distance = chosen
        bank, scoring = normalised(memory.features, distance), Scoring(test)
        for image in reader.images(test, title="k-NN segmentation"):
            queries = normalised((image.patches - mean) / deviation, distance)
            _, places = nearest(queries, bank, k, distance)
            predicted = majority(memory.labels[places], test.num_classes)
            truth = torch.from_numpy(cut_mask(image.mask, image.grid, encoder.patch_size))
            scoring.add(truth, predicted)
        return self.scored(
            reader,
            train,
            scoring,
            picked={"neighbours": k, "distance": distance, "tried": tried},
            resolution=f"{reader.side} squash",
            features="patches, standardised over train",
        )

    def _memory(self, reader: PatchReader, train: SegmentationData) -> tuple[PatchMemory, Tensor, Tensor]:
        """Collect train's patches whose commonest value is a class, standardised."""
        features, labels, images = [], [], []
        seen = 0
        for image in reader.images(train):
            pixels = torch.from_numpy(cut_mask(image.mask, image.grid, reader.encoder.patch_size))
            usable = (pixels.mode(dim=1).values != IGNORED).nonzero()[:, 0]
            # Every n-th of the whole list, not of each image, so that no image is left out by a large n.
            known = usable[-seen % self.every :: self.every]
            seen += len(usable)
            features.append(image.patches[known.to(image.patches.device)])
            labels.append(pixels[known])
            images.append(torch.full((len(known),), image.place))
        if not features:
            raise DataError("The memory holds no patch: no training image could be used.")
        memory = torch.cat(features)
        mean, deviation = standardisation(memory)
        memory.sub_(mean).div_(deviation)
        return PatchMemory(memory, torch.cat(labels).to(memory.device), torch.cat(images)), mean, deviation

    def _choose(
        self, memory: PatchMemory, classes: int, work: Work
    ) -> tuple[tuple[int, Distance], list[dict[str, object]]]:
        """Score every k and distance on the last tenth of the training images; ties: the first of the grid."""
        names = torch.unique_consecutive(memory.images)
        held_out = names[len(names) - max(1, len(names) // 10) :]
        query = torch.isin(memory.images, held_out).to(memory.features.device)
        if len(names) < 2 or len(self.neighbours) * len(self.distances) == 1:
            return (self.neighbours[0], self.distances[0]), []
        tried: list[dict[str, object]] = []
        best: tuple[float, tuple[int, Distance]] | None = None
        with progress_bar(
            "choosing k and distance", len(self.distances) * len(held_out), work.progress
        ) as advance:
            for distance in self.distances:
                scores = self._validate(memory, query, classes, distance)
                advance(len(held_out))
                for k, value in zip(self.neighbours, scores, strict=True):
                    tried.append({"neighbours": k, "distance": distance, "mIoU": 100 * value})
                    if best is None or value > best[0]:
                        best = value, (k, distance)
        assert best is not None
        return best[1], tried

    def _validate(
        self, memory: PatchMemory, query: Tensor, classes: int, distance: Distance
    ) -> Sequence[float]:
        """Mean IoU of each k; neighbours are searched once, for the largest."""
        features = normalised(memory.features, distance)
        bank, labels = features[~query], memory.labels[~query]
        truths, queries = memory.labels[query], features[query]
        confusions = [torch.zeros(classes, classes, dtype=torch.long) for _ in self.neighbours]
        for start in range(0, len(queries), 1024):
            span = slice(start, start + 1024)
            _, places = nearest(queries[span], bank, max(self.neighbours), distance)
            for number, k in enumerate(self.neighbours):
                voted = majority(labels[places[:, :k]], classes)
                confusions[number] += confusion_matrix(truths[span].cpu(), voted.cpu(), classes)
        return [segmentation_score(confusion).mean_iou for confusion in confusions]


def normalised(features: Float[Tensor, "patches dim"], distance: Distance) -> Float[Tensor, "patches dim"]:
    """Bring features to unit length for `cosine`; leave them for `L2`."""
    return F.normalize(features, dim=1) if distance == "cosine" else features
