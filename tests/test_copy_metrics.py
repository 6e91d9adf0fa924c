"""Metrics against scikit-learn and slow NumPy, search and descriptors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from copy_fakes import QUIET, Images, Thumbnail, pictures, thumbnail_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from glocal.errors import ConfigError, DataError
from glocal.evaluation.intervals import Samples
from glocal.evaluation.retrieval.copy_detection import measure
from glocal.evaluation.retrieval.descriptors import DescriptorConfig, describe, learn_whitening, whiten
from glocal.evaluation.retrieval.ranking import ranks_of_positives, trapezoid_average_precision
from glocal.extraction.nearest import nearest
from glocal.models.features import Features

# --- metrics -------------------------------------------------------------------------------------------------------


def of_one_ranking(statistic: str, scores: np.ndarray, match: np.ndarray, total: int) -> float:
    """A figure in 0..1 of pairs that belong to one query."""
    return Samples(np.concatenate([scores, match, [total]])[None], statistic).figure() / 100


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=40), st.integers(0, 5))
def test_micro_ap_is_sklearns_times_the_share_found(pairs: list[tuple[int, bool]], missed: int) -> None:
    scores = np.array([score / 8 for score, _ in pairs])
    match = np.array([hit for _, hit in pairs])
    if not match.any():
        match[0] = True
    total = int(match.sum()) + missed
    expected = average_precision_score(match, scores) * match.sum() / total
    assert of_one_ranking("micro_ap", scores, match, total) == pytest.approx(expected, abs=1e-12)


def test_micro_ap_by_hand() -> None:
    # Right, wrong, right of three matches: 1/3 * 1 + 1/3 * 2/3.
    scores, match = np.array([3.0, 2.0, 1.0]), np.array([1, 0, 1])
    assert of_one_ranking("micro_ap", scores, match, 3) == pytest.approx(5 / 9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=40))
def test_recall_at_precision_is_the_best_threshold(pairs: list[tuple[int, bool]]) -> None:
    scores, match = np.array([float(s) for s, _ in pairs]), np.array([m for _, m in pairs])
    total = int(match.sum()) + 1
    best = 0.0
    for threshold in set(scores.tolist()):
        accepted = match[scores >= threshold]
        if accepted.sum() / len(accepted) >= 0.9:
            best = max(best, accepted.sum() / total)
    assert of_one_ranking("recall_at_precision_90", scores, match, total) == pytest.approx(best)


def slow_trapezoid(order: list[bool]) -> float:
    """Area under the curve that joins (recall, precision) after every item, by the trapezoid rule."""
    area, old_recall, old_precision, hits, total = 0.0, 0.0, 1.0, 0, sum(order)
    for seen, hit in enumerate(order, 1):
        hits += hit
        recall, precision = hits / total, hits / seen
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return area


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_trapezoid_average_precision_is_the_area(order: list[bool]) -> None:
    order = order if any(order) else [*order, True]
    ranks = np.flatnonzero(order)
    assert trapezoid_average_precision(ranks, len(ranks)) == pytest.approx(slow_trapezoid(order))


# --- search --------------------------------------------------------------------------------------------------------


def slow_ranks(scores: np.ndarray, positives: set[int], ignored: set[int]) -> list[int]:
    """Ranks in a full sort where ties put negatives first."""
    items = [i for i in range(len(scores)) if i not in ignored]
    order = sorted(items, key=lambda i: (-round(float(scores[i]), 5), i in positives))
    return [rank for rank, item in enumerate(order) if item in positives]


@pytest.mark.parametrize("block", [1, 7 * 30, 2**25])
@pytest.mark.parametrize("count", [1, 6])
def test_ranks_equal_a_full_sort(monkeypatch: pytest.MonkeyPatch, block: int, count: int) -> None:
    monkeypatch.setattr("glocal.evaluation.retrieval.ranking._BLOCK_ELEMENTS", block)
    rng = np.random.default_rng(count)
    # Few distinct directions: many exact ties.
    database = F.normalize(torch.tensor(rng.integers(-1, 2, (30, 4)) + 0.25, dtype=torch.float32), dim=1)
    queries = F.normalize(torch.tensor(rng.normal(size=(20, 4)), dtype=torch.float32), dim=1)
    chosen = [rng.permutation(30)[: count + 5] for _ in range(20)]
    positives, ignored = [c[:count] for c in chosen], [c[count:] for c in chosen]
    found = ranks_of_positives(queries, database, positives, ignored)
    scores = (queries @ database.T).numpy()
    for row, ranks, right, junk in zip(scores, found, positives, ignored, strict=True):
        assert ranks.tolist() == slow_ranks(row, set(right.tolist()), set(junk.tolist()))


def test_nearest_rows_equal_a_full_sort() -> None:
    queries, database = F.normalize(torch.randn(9, 5), dim=1), F.normalize(torch.randn(50, 5), dim=1)
    best = nearest(queries, database, 7)
    order = (-(queries @ database.T)).argsort(dim=1)[:, :7]
    assert torch.equal(best.rows, order)
    assert nearest(queries, database, 99).rows.shape == (9, 50)


def test_a_collapsed_model_scores_zero_not_the_order_of_files() -> None:
    same = torch.ones(5, 3) / 3**0.5
    samples = measure(same, same, [np.array([i]) for i in range(5)], [""] * 5).samples
    assert samples["recall_at_1"].figure() == 0
    assert samples["map"].figure() == pytest.approx(100 / (2 * 5))


@pytest.mark.usefixtures("unchecked")
def test_search_refuses_other_dimensions() -> None:
    with pytest.raises(DataError, match="dimensions"):
        ranks_of_positives(torch.eye(3), torch.eye(4), [np.array([0])] * 3)
    with pytest.raises(DataError, match="rows of 4"):
        nearest(torch.eye(3), torch.eye(4), 1)


def test_search_refuses_what_would_give_a_wrong_number() -> None:
    good = torch.eye(3)
    with pytest.raises(DataError, match="aren't finite"):
        ranks_of_positives(good * torch.nan, good, [np.array([0])] * 3)
    with pytest.raises(DataError, match="among 0 rows"):
        nearest(good, good[:0], 1)
    with pytest.raises(DataError, match="database item 3"):
        ranks_of_positives(good[:1], good, [np.array([3])])
    with pytest.raises(DataError, match="positive and junk"):
        ranks_of_positives(good[:1], good, [np.array([1])], [np.array([1])])
    with pytest.raises(ConfigError, match="1 or more"):
        nearest(good, good, 0)


# --- descriptors ---------------------------------------------------------------------------------------------------


def test_whitening_gives_unit_covariance_and_keeps_leading_axes() -> None:
    torch.manual_seed(0)
    data = torch.randn(500, 6) @ torch.randn(6, 6) + 3
    whitened = (data @ learn_whitening(data)).numpy()
    np.testing.assert_allclose(whitened.T @ whitened / len(whitened), np.eye(6), atol=1e-3)
    small = learn_whitening(data, 2)
    exact = data.numpy().astype(np.float64)
    values, vectors = np.linalg.eigh(exact.T @ exact / len(exact))
    expected = exact @ vectors[:, ::-1][:, :2] / np.sqrt(values[::-1][:2])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    actual = whiten(data, small).numpy()
    np.testing.assert_allclose(np.abs(actual), np.abs(expected), atol=1e-4)
    with pytest.raises(ConfigError, match="1 to 6"):
        learn_whitening(data, 7)
    with pytest.raises(DataError, match="collapsed"):
        learn_whitening(torch.ones(5, 3))


def test_descriptor_is_cls_and_gem_averaged_over_scales() -> None:
    image = pictures(1)[0]
    encoder = thumbnail_encoder()
    found = describe(encoder, Images({"a": image}), DescriptorConfig(readout="cls_gem"), QUIET).first
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    features = Thumbnail()(pixels)
    pooled = features.patches.clamp(min=1e-6).pow(4).mean(1).pow(0.25)
    torch.testing.assert_close(found, F.normalize(torch.cat([features.cls, pooled], 1), dim=1))
    with pytest.raises(ConfigError, match="scales"):
        describe(encoder, Images({"a": image}), DescriptorConfig(scales=(0.0,)), QUIET)


def test_longer_side_keeps_the_aspect(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    encoder = thumbnail_encoder()

    def features(pixels: torch.Tensor) -> Features:
        seen.append(tuple(pixels.shape))
        patches = torch.ones(len(pixels), 4, 2)
        return Features(torch.ones(len(pixels), 2), patches, (2, 2), patches)

    monkeypatch.setattr(encoder, "features", features)
    image = np.zeros((60, 120, 3), np.uint8)
    describe(
        encoder, Images({"a": image}), DescriptorConfig(resize="longer", size=32, scales=(1.0, 0.5)), QUIET
    )
    assert seen == [(1, 3, 16, 32), (1, 3, 8, 16)]
