"""Statistics of embeddings against slow NumPy versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_fakes import coloured, small_encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.errors import DataError
from glocal.evaluation.statistics import Statistics
from glocal.extraction.embedding_statistics import (
    alignment,
    dimension_std,
    effective_rank,
    patch_class_similarity,
    patch_similarity,
    uniformity,
)
from glocal.extraction.work import Work


def unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


@given(rows=st.integers(2, 30), dim=st.integers(1, 30), seed=st.integers(0, 2**20))
@settings(max_examples=40, deadline=None)
def test_effective_rank_equals_the_definition(rows: int, dim: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(rows, dim))
    singular = np.linalg.svd(x, compute_uv=False)
    share = singular / singular.sum()
    expected = np.exp(-(share * np.log(share + 1e-30)).sum())
    found = float(effective_rank(torch.from_numpy(x)))
    assert np.isclose(found, expected, rtol=1e-6)
    assert 1 - 1e-9 <= found <= min(rows, dim) + 1e-6


def test_effective_rank_of_known_matrices() -> None:
    assert np.isclose(float(effective_rank(torch.ones(50, 8))), 1, atol=1e-3)
    assert float(effective_rank(torch.zeros(5, 3))) == 1
    assert np.isclose(float(effective_rank(torch.eye(20)[:, :6])), 6)


def test_alignment_and_uniformity_equal_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    x, y = unit(generator.normal(size=(37, 5))), unit(generator.normal(size=(37, 5)))
    expected = np.mean([np.sum((a - b) ** 2) for a, b in zip(x, y, strict=True)])
    assert np.isclose(float(alignment(torch.from_numpy(3 * x), torch.from_numpy(y))), expected)
    pairs = [np.exp(-2 * np.sum((x[i] - x[j]) ** 2)) for i in range(37) for j in range(37) if i != j]
    monkeypatch.setattr("glocal.extraction.embedding_statistics.PAIR_CHUNK", 10)
    assert np.isclose(float(uniformity(torch.from_numpy(2 * x))), np.log(np.mean(pairs)))
    assert np.isclose(float(uniformity(torch.ones(5, 4))), 0)
    with pytest.raises(DataError, match="2 or more"):
        uniformity(torch.ones(1, 4))


def test_spread_and_patches_equal_loops() -> None:
    generator = np.random.default_rng(1)
    x, patches, cls = (
        generator.normal(size=(40, 6)),
        generator.normal(size=(3, 7, 6)),
        generator.normal(size=(3, 6)),
    )
    assert np.allclose(dimension_std(torch.from_numpy(x)), unit(x).std(0) * np.sqrt(6))
    to_class = [np.mean(unit(p) @ unit(c)) for p, c in zip(patches, cls, strict=True)]
    assert np.allclose(patch_class_similarity(torch.from_numpy(patches), torch.from_numpy(cls)), to_class)
    among = [
        np.mean([unit(p[i]) @ unit(p[j]) for i in range(7) for j in range(7) if i != j]) for p in patches
    ]
    assert np.allclose(patch_similarity(torch.from_numpy(patches)), among)
    assert patch_similarity(torch.ones(2, 1, 4)).tolist() == [1, 1]


def test_protocol_needs_no_labels_and_is_independent_of_batches() -> None:
    source = coloured(50, 3, bad=(9,))
    source.labels = None
    config = Statistics(images=40)
    runs = [
        config.run(small_encoder(), {"images": source}, Work(progress=False, batch_size=b, workers=w))
        for b, w in ((64, 0), (9, 1))
    ]
    one = runs[0].numbers
    assert one == runs[1].numbers
    assert 1 < one["effective_rank"] <= 40
    assert one["alignment"] > 0
    assert one["uniformity"] < 0
    assert runs[0].settings["measured_images"] in (39, 40)
    assert len(runs[0].data) == 1
