"""The two DAVIS measures of a video segmentation: region similarity J and boundary accuracy F.

Perazzi et al. 2016, "A benchmark dataset and evaluation methodology for video object segmentation", section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.spatial import cKDTree

from glocal.errors import DataError

BOUNDARY_TOLERANCE = 0.008
"""Largest distance between matching boundary pixels, as a share of the image diagonal."""


def region_similarity(truth: Bool[np.ndarray, "h w"], prediction: Bool[np.ndarray, "h w"]) -> float:
    """Return J, the intersection over union of two masks; two empty masks agree fully (1).

    >>> region_similarity(np.array([[True, True]]), np.array([[True, False]]))
    0.5
    """
    union = np.count_nonzero(truth | prediction)
    return 1.0 if union == 0 else float(np.count_nonzero(truth & prediction) / union)


def boundary_map(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Mark the pixels that differ from their right, lower or lower-right neighbour: a boundary one pixel wide.

    Beyond the image's edge there is no neighbour, so an object cut by the frame has no boundary there.
    """
    extended = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, diagonal = extended[:-1, 1:], extended[1:, :-1], extended[1:, 1:]
    result: np.ndarray = (mask != right) | (mask != below) | (mask != diagonal)
    return result


def boundary_accuracy(
    truth: Bool[np.ndarray, "h w"], prediction: Bool[np.ndarray, "h w"], tolerance: float = BOUNDARY_TOLERANCE
) -> float:
    """Return F, the harmonic mean of boundary precision and recall within ceil(`tolerance` x diagonal) pixels.

    A boundary pixel is matched when one of the other boundary lies within that distance, which equals dilating the
    other by a disk; nearest neighbours among the few boundary pixels replace the dilation of whole images. One empty
    boundary gives 0, two give 1.
    """
    radius = np.ceil(tolerance * np.hypot(*truth.shape))
    true_points, predicted_points = np.argwhere(boundary_map(truth)), np.argwhere(boundary_map(prediction))
    if len(true_points) == 0 or len(predicted_points) == 0:
        return float(len(true_points) == len(predicted_points))
    precision = _share_within(predicted_points, true_points, radius)
    recall = _share_within(true_points, predicted_points, radius)
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def _share_within(
    points: Integer[np.ndarray, "n 2"], others: Integer[np.ndarray, "m 2"], radius: float
) -> float:
    # scipy's bound is exclusive; squared distances are whole numbers, so half a step further admits the radius itself.
    bound = np.sqrt(radius**2 + 0.5)
    distance, _ = cKDTree(others).query(points, distance_upper_bound=bound)
    return float(np.isfinite(distance).mean())


@dataclass(frozen=True)
class SequenceScore:
    """J and F of every object (rows) in every scored frame (columns) of one sequence, and what was odd about it."""

    name: str
    region: Float[np.ndarray, "objects frames"]
    boundary: Float[np.ndarray, "objects frames"]
    notes: list[str] = field(default_factory=list)


def score_sequence(
    name: str, truth: Sequence[Integer[np.ndarray, "h w"]], prediction: Sequence[Integer[np.ndarray, "h w"]]
) -> SequenceScore:
    """Score label maps of one sequence (0 background, 1.. objects, 255 void); first and last frame are dropped.

    The first frame is given to the method and the last is not scored by the official tool. Objects are those of the
    first frame; one appearing later has no label to propagate and is not scored, as in the official tool.

    Raises:
        DataError: when frames are missing, sizes differ or the first mask shows no object.
    """
    if len(truth) != len(prediction) or len(truth) < 3:
        raise DataError(
            f"Sequence {name}: {len(prediction)} predicted and {len(truth)} true masks; as many of each are needed, "
            "and at least 3."
        )
    first = truth[0][truth[0] != 255]
    objects = int(first.max(initial=0))
    if objects == 0:
        raise DataError(
            f"Sequence {name}: the first mask shows no object (values 1 and up). Nothing can be followed."
        )
    region, boundary = np.zeros((2, objects, len(truth) - 2))
    for frame in range(1, len(truth) - 1):
        if truth[frame].shape != prediction[frame].shape:
            raise DataError(
                f"Sequence {name}, frame {frame}: the prediction is {prediction[frame].shape}, the mask "
                f"{truth[frame].shape} (rows, columns). Resize predictions to the size of the masks."
            )
        for number in range(1, objects + 1):
            pair = truth[frame] == number, prediction[frame] == number
            region[number - 1, frame - 1] = region_similarity(*pair)
            boundary[number - 1, frame - 1] = boundary_accuracy(*pair)
    late = sorted({int(v) for mask in truth for v in np.unique(mask) if objects < v < 255})
    notes = [f"{name}: object(s) {late} not in the first mask, not scored"] if late else []
    return SequenceScore(name, region, boundary, notes)


def summarise(per_frame: Float[np.ndarray, " frames"]) -> tuple[float, float, float]:
    """Return mean, recall (share of frames above 0.5) and decay (first quarter minus last) of one object's values.

    Quarters share their border frame, as in the official tool.
    """
    edges = np.round(np.linspace(1, len(per_frame), 5) + 1e-10).astype(int) - 1
    quarters = [per_frame[edges[i] : edges[i + 1] + 1].mean() for i in range(4)]
    return float(per_frame.mean()), float((per_frame > 0.5).mean()), float(quarters[0] - quarters[3])


def score_dataset(sequences: Sequence[SequenceScore]) -> dict[str, float]:
    """Average over frames, then over all objects of all sequences; `J&F` is the mean of mean J and mean F."""
    numbers = {}
    for letter, values in (("J", [s.region for s in sequences]), ("F", [s.boundary for s in sequences])):
        table = np.array([summarise(row) for objects in values for row in objects])
        for name, value in zip(("mean", "recall", "decay"), table.mean(0), strict=True):
            numbers[f"{letter}_{name}"] = float(value)
    return {"J&F": (numbers["J_mean"] + numbers["F_mean"]) / 2, **numbers}
