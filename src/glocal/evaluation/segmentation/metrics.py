"""Segmentation scores from a confusion matrix: intersection over union per class, their mean, pixel accuracy.

Everything is counted in integers, so a score depends neither on the batch size nor on the order of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from glocal.errors import DataError

IGNORED = 255


def confusion_matrix(
    target: Integer[Tensor, "*shape"],
    prediction: Integer[Tensor, "*shape"],
    rows: int,
    columns: int | None = None,
) -> Int64[Tensor, "rows columns"]:
    """Count pixels by (true class, predicted class); pixels whose target is `IGNORED` (255) are left out.

    Args:
        target: true class of every pixel, 0 to `rows` - 1 or 255.
        prediction: predicted class or cluster, 0 to `columns` - 1, of the same shape.
        rows: number of classes.
        columns: number of predicted values, `rows` unless told (clusterings have more).

    Raises:
        DataError: when the shapes differ or a value lies outside its range.

    >>> confusion_matrix(torch.tensor([0, 1, 1, 255]), torch.tensor([0, 0, 1, 1]), rows=2).tolist()
    [[1, 0], [1, 1]]
    """
    columns = rows if columns is None else columns
    if target.shape != prediction.shape:
        raise DataError(
            f"The prediction has shape {tuple(prediction.shape)}, its mask {tuple(target.shape)}. "
            "Resize the prediction to the mask before scoring."
        )
    kept = target != IGNORED
    true, predicted = target[kept].long(), prediction[kept].long()
    for name, values, limit in (("mask", true, rows), ("prediction", predicted, columns)):
        if values.numel() and (int(values.min()) < 0 or int(values.max()) >= limit):
            raise DataError(
                f"A {name} holds value {int(values.max() if values.min() >= 0 else values.min())}; allowed are 0 to "
                f"{limit - 1} and {IGNORED} (ignored). Set num_classes, or list the value under ignore."
            )
    return torch.bincount(true * columns + predicted, minlength=rows * columns).view(rows, columns)


@dataclass(frozen=True)
class SegmentationScore:
    """What a confusion matrix says. Shares are 0 to 1; a class with no pixel on either side has IoU NaN."""

    mean_iou: float
    class_iou: Float[np.ndarray, " classes"]
    pixel_accuracy: float
    mean_accuracy: float
    absent: list[int]

    def notes(self, class_names: Sequence[str] | None = None) -> list[str]:
        """Name the classes without a pixel in the ground truth, and how they were counted."""
        if not self.absent:
            return []
        unseen = [index for index in self.absent if np.isnan(self.class_iou[index])]
        predicted = [index for index in self.absent if not np.isnan(self.class_iou[index])]
        said = []
        for group, consequence in (
            (unseen, "left out of the mean"),
            (predicted, "predicted all the same and counted as IoU 0"),
        ):
            if group:
                names = ", ".join(str(i) if class_names is None else class_names[i] for i in group)
                said.append(f"{len(group)} class(es) absent in the scored masks, {consequence}: {names}")
        return said


def segmentation_score(confusion: Int64[Tensor, "classes classes"]) -> SegmentationScore:
    """Compute IoU per class, its mean, pixel accuracy and mean class accuracy from a confusion matrix.

    The mean runs over the classes whose union is not empty: a class nobody drew and nobody predicted is left out, a
    class predicted but absent counts 0 (as in mmsegmentation and, with `labels` given, scikit-learn).

    Raises:
        DataError: when not one pixel was scored.
    """
    counts = confusion.detach().cpu().double().numpy()
    if counts.sum() == 0:
        raise DataError(
            "No pixel can be scored: every mask is empty, ignored or was skipped. Check the ignore setting "
            "and that masks and images have the same size."
        )
    true, predicted, hit = counts.sum(1), counts.sum(0), np.diagonal(counts)
    union = true + predicted - hit
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, recall = hit / union, hit / true
    return SegmentationScore(
        mean_iou=float(iou[union > 0].mean()),
        class_iou=iou,
        pixel_accuracy=float(hit.sum() / counts.sum()),
        mean_accuracy=float(recall[true > 0].mean()),
        absent=[int(index) for index in np.flatnonzero(true == 0)],
    )


def assign_by_precision(confusion: Int64[Tensor, "classes clusters"]) -> Int64[Tensor, " clusters"]:
    """Give each cluster the class that most of its pixels have (many-to-one; ties and empty clusters: lowest class).

    Precision of a cluster for a class is the share of the cluster's pixels of that class, so the class of highest
    precision is the one of the highest count. The labels used are those scored on: a diagnosis, not a prediction.
    """
    return confusion.argmax(dim=0)


def assign_by_hungarian(confusion: Int64[Tensor, "classes clusters"]) -> Int64[Tensor, " clusters"]:
    """Match clusters to classes one to one so that the summed IoU is highest (Hungarian algorithm).

    Raises:
        DataError: when there are not as many clusters as classes.
    """
    classes, clusters = confusion.shape
    if classes != clusters:
        raise DataError(f"{clusters} clusters don't pair up with {classes} classes. Use {classes} clusters.")
    counts = confusion.detach().cpu().double().numpy()
    union = counts.sum(1, keepdims=True) + counts.sum(0, keepdims=True) - counts
    class_index, cluster_index = linear_sum_assignment(-(counts / np.maximum(union, 1)))
    assignment = torch.empty(clusters, dtype=torch.long)
    assignment[torch.from_numpy(cluster_index)] = torch.from_numpy(class_index)
    return assignment


def merge_clusters(
    confusion: Int64[Tensor, "classes clusters"], assignment: Int64[Tensor, " clusters"]
) -> Int64[Tensor, "classes classes"]:
    """Turn counts by cluster into counts by class, given each cluster's class."""
    classes = confusion.shape[0]
    return torch.zeros(classes, classes, dtype=confusion.dtype).index_add_(
        1, assignment.cpu(), confusion.cpu()
    )
