"""Over-clustering: how well k-means clusters of patch features follow the classes nobody told them.

The protocol of Leopart (Ziegler and Asano 2022, section 4) and NeCo: standardise, PCA, k-means, then either every
cluster takes the class it is purest in (many more clusters than classes) or clusters and classes pair up one to one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from glocal.errors import ConfigError, DataError
from glocal.evaluation.base import DataLike
from glocal.evaluation.intervals import Samples
from glocal.evaluation.results import Result
from glocal.evaluation.segmentation.dense_features import (
    QUICK_GRID,
    DenseConfig,
    resize_mask,
    standardisation,
)
from glocal.evaluation.segmentation.masks import TEST, open_segmentation
from glocal.evaluation.segmentation.metrics import (
    assign_by_hungarian,
    assign_by_precision,
    confusion_matrix,
    merge_clusters,
    segmentation_score,
)
from glocal.extraction.progress import progress_bar
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder

if TYPE_CHECKING:
    from typing_extensions import Self

SCORED_SIDE = 100
"""Masks and cluster maps are compared at 100x100, nearest neighbour."""


def principal_components(
    features: Float[Tensor, "patches dim"], components: int
) -> Float[Tensor, "patches components"]:
    """Project centred features on the leading eigenvectors of their covariance (added up in double precision).

    Signs of the components are arbitrary and don't matter to Euclidean k-means.
    """
    mean = features.double().mean(0)
    covariance = torch.zeros(
        features.shape[1], features.shape[1], dtype=torch.float64, device=features.device
    )
    for chunk in torch.split(features, 65536):
        centred = chunk.double() - mean
        covariance += centred.T @ centred
    _, vectors = torch.linalg.eigh(covariance)
    basis = vectors.flip(1)[:, :components].float()
    projected: Tensor = (features - mean.float()) @ basis
    return projected


def cluster(
    features: Float[np.ndarray, "patches dim"],
    clusters: int,
    seed: int,
    method: Literal["minibatch", "lloyd"],
    iterations: int,
    restarts: int,
) -> Int64[np.ndarray, " patches"]:
    """Run Euclidean k-means (scikit-learn) and return every patch's cluster.

    Raises:
        DataError: when there are fewer patches than clusters.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    if len(features) < clusters:
        raise DataError(
            f"{len(features)} patches can't form {clusters} clusters. Use fewer clusters or more images."
        )
    if method == "minibatch":
        fitted = MiniBatchKMeans(
            clusters,
            batch_size=max(4096, 8 * clusters),
            max_iter=iterations,
            n_init=restarts,
            random_state=seed,
        ).fit(features)
    else:
        fitted = KMeans(clusters, max_iter=iterations, n_init=restarts, random_state=seed).fit(features)
    return np.asarray(fitted.labels_, np.int64)


class OverClustering(DenseConfig):
    """Over-clustering on the split to be scored, at K = `clusters` and at K = number of classes.

    `mIoU` of the many clusters uses the labels it is scored on (a diagnosis of the features); `mIoU_matched` is the
    one-to-one Hungarian match on IoU. Both are means over `seeds` runs, with their standard deviation.

    Departure from the reference: mini-batch k-means unless `method=lloyd`.
    """

    protocol: ClassVar[str] = "overclustering"

    size: int | None = 448
    """Side in pixels that images are squashed to, a multiple of the patch; null: the model's own."""
    clusters: int = 500
    """Clusters of the many-to-one score."""
    components: int = 50
    """Principal components kept."""
    seeds: int = 5
    """Runs of k-means that are averaged, seeded 0, 1, ..."""
    method: Literal["minibatch", "lloyd"] = "minibatch"
    """How k-means is solved; `lloyd` is the reference's and takes about twice the time for the same score."""
    iterations: int = 100
    """Most passes over the patches."""
    restarts: int = 5
    """Initialisations tried a run; the one of least inertia is kept."""

    @classmethod
    def quick(cls, encoder: Encoder) -> Self:
        """A grid of 14x14 patches, one run of k-means from one start."""
        return cls(size=QUICK_GRID * encoder.patch_size, seeds=1, restarts=1)

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Cluster the patches of the test split and score the clusters against its masks."""
        if min(self.clusters, self.components, self.seeds, self.iterations, self.restarts) < 1:
            raise ConfigError("clusters, components, seeds, iterations and restarts must be 1 or more.")
        test = open_segmentation(data, *TEST, ignore=self.ignore, num_classes=self.num_classes)
        reader = self.reader(encoder, work)
        patches, masks, grid = [], [], (0, 0)
        for image in reader.images(test):
            patches.append(image.patches.cpu())
            masks.append(resize_mask(image.mask, (SCORED_SIDE, SCORED_SIDE)))
            grid = image.grid
        features = torch.cat(patches)
        mean, deviation = standardisation(features)
        features.sub_(mean).div_(deviation)
        points = principal_components(features, self.components).numpy()
        rows, by_image = self._score_runs(points, np.stack(masks), grid, test.num_classes, work)
        numbers = _mean_and_deviation(rows)
        resolved: dict[str, Any] = {
            "resolution": f"{reader.side} squash, scored at {SCORED_SIDE}x{SCORED_SIDE}",
            "features": f"patches, standardised, PCA to {min(self.components, points.shape[1])}",
            "norm": True,
            "classes": list(test.class_names),
        }
        notes = [*reader.counted.notes(), *_absent(np.stack(masks), test.class_names)]
        return self.result(
            encoder, {"test": test.source}, numbers, rows=rows, notes=notes, samples=by_image, **resolved
        )

    def _score_runs(
        self,
        points: Float[np.ndarray, "patches dim"],
        masks: UInt8[np.ndarray, "images height width"],
        grid: tuple[int, int],
        classes: int,
        work: Work,
    ) -> tuple[list[dict[str, float]], dict[str, Samples]]:
        """Cluster with every seed, at both numbers of clusters; a row a seed, and what each image adds."""
        rows: list[dict[str, float]] = []
        added: dict[str, list[Tensor]] = {"mIoU": [], "mIoU_matched": []}
        with progress_bar("k-means", 2 * self.seeds, work.progress, unit="runs") as advance:
            for seed in range(self.seeds):
                row: dict[str, float] = {"seed": seed}
                for name, count in (("mIoU", self.clusters), ("mIoU_matched", classes)):
                    labels = cluster(points, count, seed, self.method, self.iterations, self.restarts)
                    confusion = cluster_confusion(labels, masks, grid, classes, count)
                    assigned = (assign_by_precision if name == "mIoU" else assign_by_hungarian)(confusion)
                    row[name] = 100 * segmentation_score(merge_clusters(confusion, assigned)).mean_iou
                    every = (
                        merge_clusters(one, assigned)
                        for one in image_confusions(labels, masks, grid, classes, count)
                    )
                    added[name].append(
                        torch.stack([torch.stack([m.diag(), m.sum(1), m.sum(0)]) for m in every])
                    )
                    advance(1)
                rows.append(row)
        # Classes of all runs side by side: the mean over them is the mean over runs.
        return rows, {
            name: Samples(torch.cat(a, dim=2).flatten(1).numpy(), "iou") for name, a in added.items()
        }


def image_confusions(
    labels: Int64[np.ndarray, " patches"],
    masks: UInt8[np.ndarray, "images height width"],
    grid: tuple[int, int],
    classes: int,
    clusters: int,
) -> Iterator[Int64[Tensor, "classes clusters"]]:
    """Count each image's scored pixels by (class, cluster), maps brought to the masks' size by nearest neighbour."""
    side = masks.shape[1:]
    for clusters_of_image, mask in zip(labels.reshape(len(masks), *grid), masks, strict=True):
        enlarged = torch.from_numpy(resize_mask(clusters_of_image, side))
        yield confusion_matrix(torch.from_numpy(mask), enlarged, classes, clusters)


def cluster_confusion(
    labels: Int64[np.ndarray, " patches"],
    masks: UInt8[np.ndarray, "images height width"],
    grid: tuple[int, int],
    classes: int,
    clusters: int,
) -> Int64[Tensor, "classes clusters"]:
    """The sum of `image_confusions`."""
    confusion = torch.zeros(classes, clusters, dtype=torch.long)
    for of_image in image_confusions(labels, masks, grid, classes, clusters):
        confusion += of_image
    return confusion


def _mean_and_deviation(rows: list[dict[str, float]]) -> dict[str, float]:
    numbers = {}
    for name in ("mIoU", "mIoU_matched"):
        values = [row[name] for row in rows]
        numbers[name], numbers[f"{name}_std"] = float(np.mean(values)), float(np.std(values))
    return numbers


def _absent(masks: UInt8[np.ndarray, "images height width"], names: tuple[str, ...]) -> list[str]:
    present = set(np.unique(masks).tolist())
    missing = [name for number, name in enumerate(names) if number not in present]
    return [f"{len(missing)} class(es) absent in the scored masks: {', '.join(missing)}"] if missing else []
