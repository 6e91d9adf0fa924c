"""Confusion matrices, IoU and cluster assignment against scikit-learn and plain loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score

from glocal.errors import DataError
from glocal.evaluation.segmentation.metrics import (
    assign_by_hungarian,
    assign_by_precision,
    confusion_matrix,
    merge_clusters,
    segmentation_score,
)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_score_equals_scikit_learn(seed: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    target = generator.integers(0, classes, 200)
    prediction = generator.integers(0, classes, 200)
    target[generator.random(200) < 0.2] = 255
    target[0] = 0
    kept = target != 255
    confusion = confusion_matrix(torch.from_numpy(target), torch.from_numpy(prediction), classes)
    score = segmentation_score(confusion)
    present = np.union1d(target[kept], prediction[kept])
    expected = jaccard_score(target[kept], prediction[kept], average="macro", labels=present)
    assert score.mean_iou == pytest.approx(expected, abs=1e-12)
    assert score.pixel_accuracy == pytest.approx(accuracy_score(target[kept], prediction[kept]), abs=1e-12)


def test_confusion_matrix_equals_a_loop() -> None:
    generator = np.random.default_rng(0)
    target, prediction = generator.integers(0, 3, (2, 5, 7)), generator.integers(0, 4, (2, 5, 7))
    target[0, 0] = 255
    slow = np.zeros((3, 4), int)
    for true, predicted in zip(target.ravel(), prediction.ravel(), strict=True):
        if true != 255:
            slow[true, predicted] += 1
    found = confusion_matrix(torch.from_numpy(target), torch.from_numpy(prediction), 3, 4)
    assert np.array_equal(found.numpy(), slow)


def test_absent_classes_are_named_and_counted_as_told() -> None:
    confusion = torch.tensor([[5, 0, 1, 0], [0, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    score = segmentation_score(confusion)
    assert score.mean_iou == pytest.approx((5 / 6 + 1 + 0) / 3)
    notes = score.notes(["a", "b", "c", "d"])
    assert (
        len(notes) == 2
        and "d" in notes[0]
        and "left out" in notes[0]
        and "c" in notes[1]
        and "IoU 0" in notes[1]
    )


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="holds value 7"):
        confusion_matrix(torch.tensor([7]), torch.tensor([0]), 3)
    with pytest.raises(DataError, match="No pixel"):
        segmentation_score(torch.zeros(2, 2, dtype=torch.long))


@pytest.mark.usefixtures("unchecked")
def test_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match="shape"):
        confusion_matrix(torch.tensor([1]), torch.tensor([0, 1]), 3)


def test_assignments_equal_brute_force() -> None:
    confusion = torch.from_numpy(np.random.default_rng(1).integers(0, 50, (4, 4)))
    counts = confusion.numpy().astype(float)
    iou = counts / (counts.sum(1, keepdims=True) + counts.sum(0) - counts)
    best = max(
        itertools.permutations(range(4)), key=lambda p: sum(iou[p[cluster], cluster] for cluster in range(4))
    )
    assert assign_by_hungarian(confusion).tolist() == list(best)
    wide = torch.from_numpy(np.random.default_rng(2).integers(1, 50, (3, 9)))
    precision = wide.numpy() / wide.numpy().sum(0)
    assert assign_by_precision(wide).tolist() == precision.argmax(0).tolist()
    merged = merge_clusters(wide, assign_by_precision(wide))
    assert merged.sum() == wide.sum() and torch.equal(merged.sum(1), wide.sum(1))
    assert merged[1, 1] == sum(wide[1, c] for c in range(9) if precision.argmax(0)[c] == 1)
    with pytest.raises(DataError, match="9 clusters"):
        assign_by_hungarian(wide)
