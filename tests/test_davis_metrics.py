"""J and F against slow versions that dilate whole images, and the edge cases of the official tool."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from glocal.errors import DataError
from glocal.evaluation.objects.davis_metrics import (
    boundary_accuracy,
    boundary_map,
    region_similarity,
    score_dataset,
    score_sequence,
    summarise,
)


def slow_boundary(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    result = np.zeros_like(mask)
    for r in range(height):
        for c in range(width):
            others = [(r, c + 1), (r + 1, c), (r + 1, c + 1)]
            result[r, c] = any(mask[r, c] != mask[min(i, height - 1), min(j, width - 1)] for i, j in others)
    return result


def slow_accuracy(truth: np.ndarray, prediction: np.ndarray, radius: int) -> float:
    span = np.arange(-radius, radius + 1)
    disk = span[:, None] ** 2 + span**2 <= radius**2
    first, second = slow_boundary(truth), slow_boundary(prediction)
    if first.sum() == 0 or second.sum() == 0:
        return float(first.sum() == second.sum())
    precision = (second & ndimage.binary_dilation(first, disk)).sum() / second.sum()
    recall = (first & ndimage.binary_dilation(second, disk)).sum() / first.sum()
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def blob(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.asarray(ndimage.gaussian_filter(generator.normal(size=shape), 2) > 0.1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.02, 0.2))
def test_boundary_accuracy_equals_dilation(seed: int, tolerance: float) -> None:
    generator = np.random.default_rng(seed)
    truth, prediction = blob(generator, (21, 30)), blob(generator, (21, 30))
    radius = int(np.ceil(tolerance * np.hypot(21, 30)))
    assert np.array_equal(boundary_map(truth), slow_boundary(truth))
    assert boundary_accuracy(truth, prediction, tolerance) == pytest.approx(
        slow_accuracy(truth, prediction, radius)
    )


def test_empty_masks() -> None:
    empty, full = np.zeros((9, 9), bool), np.ones((9, 9), bool)
    square = empty.copy()
    square[3:6, 3:6] = True
    assert region_similarity(empty, empty) == 1 and region_similarity(square, empty) == 0
    assert boundary_accuracy(empty, empty) == 1 and boundary_accuracy(square, empty) == 0
    assert boundary_accuracy(full, empty) == 1  # neither has a boundary inside the image
    assert region_similarity(square, full) == 9 / 81


def test_objects_are_averaged_after_frames() -> None:
    truth = np.zeros((5, 20, 20), np.uint8)
    truth[:, 2:8, 2:8], truth[:, 12:18, 12:18] = 1, 2
    prediction = truth.copy()
    prediction[2][prediction[2] == 2] = 0
    score = score_sequence("s", list(truth), list(prediction))
    assert score.region.tolist() == [[1, 1, 1], [1, 0, 1]]
    assert score_dataset([score])["J_mean"] == pytest.approx((1 + 2 / 3) / 2)
    other = score_sequence("t", list(np.minimum(truth, 1)), list(np.minimum(truth, 1)))
    assert score_dataset([score, other])["J_mean"] == pytest.approx((1 + 2 / 3 + 1) / 3)


def test_recall_and_decay() -> None:
    mean, recall, decay = summarise(np.array([1.0, 1, 1, 1, 0.5, 0.4, 0.2, 0]))
    assert (mean, recall, decay) == pytest.approx((5.1 / 8, 0.5, 1 - 0.2))


def test_bad_sequences_are_refused() -> None:
    mask = np.zeros((4, 4), np.uint8)
    with pytest.raises(DataError, match="at least 3"):
        score_sequence("s", [mask] * 2, [mask] * 2)
    with pytest.raises(DataError, match="no object"):
        score_sequence("s", [mask] * 4, [mask] * 4)
    mask = np.ones((4, 4), np.uint8)
    late = [mask, mask * 1, mask * 3, mask]
    assert "not scored" in score_sequence("s", late, late).notes[0]


@pytest.mark.usefixtures("unchecked")
def test_a_prediction_of_another_size_is_refused() -> None:
    mask = np.ones((4, 4), np.uint8)
    with pytest.raises(DataError, match="frame 1"):
        score_sequence("s", [mask] * 4, [np.ones((5, 4), np.uint8)] * 4)
