"""Weighted k-NN against a slow version, its streaming, and the probe during training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_fakes import coloured, small_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from glocal.errors import ConfigError, DataError
from glocal.evaluation.classification.knn import KnnConfig, KnnProbe, knn_classify
from glocal.evaluation.classification.labelled import Answers
from glocal.extraction import nearest as search
from glocal.extraction.nearest import largest, nearest
from glocal.extraction.work import Work

QUIET = Work(progress=False)


def slow_knn(
    bank: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    k: int,
    temperature: float,
    classes: int,
    leave_one_out: bool = False,
) -> np.ndarray:
    """One query at a time in float64."""
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    scores = np.zeros((len(queries), classes))
    for number, query in enumerate(queries):
        similarity = bank @ query
        if leave_one_out:
            similarity[number] = -np.inf
        for near in np.argsort(-similarity, kind="stable")[:k]:
            scores[number, labels[near]] += np.exp(similarity[near] / temperature)
    return scores


@given(
    rows=st.integers(5, 40), queries=st.integers(1, 20), classes=st.integers(2, 7), k=st.integers(1, 5),
    leave_one_out=st.booleans(), seed=st.integers(0, 2**20),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_votes_equal_the_slow_version(
    rows: int, queries: int, classes: int, k: int, leave_one_out: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    bank = generator.normal(size=(rows, 6))
    asked = bank if leave_one_out else generator.normal(size=(queries, 6))
    labels = generator.integers(0, classes, rows)
    k = min(k, rows - 1)
    scores = slow_knn(bank, labels, asked, k, 0.07, classes, leave_one_out)
    tensor = torch.from_numpy(bank)
    ranked = knn_classify(
        tensor, torch.from_numpy(labels), tensor if leave_one_out else torch.from_numpy(asked), [k], 0.07, classes,
        leave_one_out,
    )[k].numpy()  # fmt: skip
    assert ranked.shape == (len(asked), min(5, classes))
    for row, score in zip(ranked, scores, strict=True):
        named = row[row >= 0]
        assert np.all(np.diff(score[named]) <= 1e-9 * score.max())
        assert np.isclose(score[named[0]], score.max())
        assert len(named) == min(5, np.count_nonzero(score / score.max() > 1e-15), classes) or len(named) >= 1
        assert np.all(score[named] > 0)


def test_predictions_equal_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    bank = generator.normal(size=(300, 16))
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    labels = generator.integers(0, 6, 300)
    queries = generator.normal(size=(100, 16))
    for k in (1, 10, 50):
        # scikit-learn's cosine distance is 1 - cosine
        def vote(distance: np.ndarray) -> np.ndarray:
            return np.exp((1 - distance) / 0.07)

        reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=vote)
        expected = reference.fit(bank, labels).predict(queries)
        found = knn_classify(
            torch.from_numpy(bank), torch.from_numpy(labels), torch.from_numpy(queries), [k]
        )[k]
        assert np.array_equal(found[:, 0].numpy(), expected)


def test_euclidean_neighbours_vote_as_scikit_learn_has_them() -> None:
    generator = np.random.default_rng(0)
    bank, queries = generator.normal(size=(200, 5)) * [1, 2, 3, 4, 5], generator.normal(size=(60, 5))
    labels = generator.integers(0, 3, 200)
    expected = KNeighborsClassifier(1, algorithm="brute").fit(bank, labels).predict(queries)
    found = knn_classify(
        torch.from_numpy(bank), torch.from_numpy(labels), torch.from_numpy(queries), [1, 7], distance="L2"
    )
    assert np.array_equal(found[1][:, 0].numpy(), expected)
    order = ((queries[:, None] - bank[None]) ** 2).sum(2).argsort(1)[:, :7]
    votes = np.stack([(labels[order] == c).sum(1) for c in range(3)], 1)
    assert (np.take_along_axis(votes, found[7][:, :1].numpy(), 1)[:, 0] == votes.max(1)).all()


def test_streaming_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(1000, 8, generator=generator), torch.randn(333, 8, generator=generator)
    labels = torch.randint(10, (1000,), generator=generator)
    whole = knn_classify(bank, labels, queries, [1, 20, 200])
    monkeypatch.setattr(search, "BANK_CHUNK", 170)
    monkeypatch.setattr(search, "QUERY_CHUNK", 50)
    streamed = knn_classify(bank, labels, queries, [1, 20, 200])
    assert all(torch.equal(whole[k], streamed[k]) for k in whole)
    found = nearest(bank, bank, 3, leave_one_out=True).rows
    assert not bool((found == torch.arange(1000)[:, None]).any())


@pytest.mark.parametrize("order", ["random", "rising", "equal"])
def test_selection_equals_a_full_sort(order: str) -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(20, 1003)) if order != "equal" else np.ones((20, 1003))
    values = np.sort(values, axis=1) if order == "rising" else values
    for k in (1, 7, 30, 400):
        found = largest(torch.from_numpy(values), k)
        assert np.array_equal(found.similarity.numpy(), -np.sort(-values, axis=1)[:, :k])
        assert np.array_equal(np.take_along_axis(values, found.rows.numpy(), 1), found.similarity.numpy())
        assert all(len(set(row)) == k for row in found.rows.tolist())


def test_small_temperatures_do_not_overflow() -> None:
    bank = torch.eye(4)
    ranked = knn_classify(bank, torch.tensor([0, 1, 2, 3]), bank * 7, [2], temperature=1e-3)[2]
    assert ranked[:, 0].tolist() == [0, 1, 2, 3]


def test_classes_without_a_vote_are_not_ranked() -> None:
    ranked = knn_classify(torch.eye(3), torch.tensor([0, 1, 2]), torch.eye(3)[:1], [1], num_classes=8)[1]
    assert ranked.tolist() == [[0, -1, -1, -1, -1]]
    assert Answers({"": ranked}, torch.tensor([3])).samples()["top5"].figure() == 0


def test_a_k_beyond_the_bank_is_refused() -> None:
    with pytest.raises(ConfigError, match="from 1 to 2"):
        knn_classify(torch.eye(3), torch.tensor([0, 1, 2]), torch.eye(3), [3], leave_one_out=True)


def test_protocol_is_independent_of_batch_size_and_workers() -> None:
    data = {
        "train": coloured(60, 3, name="train", bad=(2,)),
        "test": coloured(30, 3, seed=1, name="test", bad=(0, 5)),
    }
    config = KnnConfig(ks=(1, 5, 500))
    results = [
        config.run(small_encoder(), data, Work(progress=False, batch_size=batch_size, workers=workers))
        for batch_size, workers in ((64, 0), (7, 0), (13, 2))
    ]
    assert results[0].numbers == results[1].numbers == results[2].numbers
    assert results[0].numbers["k5_top1"] > 60  # colours are easily told apart; chance is 33
    assert "k500_top1" not in results[0].numbers
    notes = " ".join(results[0].notes)
    assert "k = 500" in notes
    assert "train: skipped 1 unreadable image" in notes
    assert "test: skipped 2 unreadable images" in notes


def test_leave_one_out_needs_no_test_images() -> None:
    result = KnnConfig(ks=(3,), leave_one_out=True).run(small_encoder(), {"train": coloured(30, 3)}, QUIET)
    assert result.numbers["k3_top1"] > 60


def test_a_missing_or_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="test, val"):
        KnnConfig().run(small_encoder(), {"train": coloured(30, 3)}, QUIET)
    empty = coloured(30, 3, name="empty")
    empty.pixels = empty.pixels[:0]
    with pytest.raises(DataError, match="empty holds no images"):
        KnnConfig().run(small_encoder(), {"train": empty, "test": empty}, QUIET)


def test_probe_agrees_with_the_protocol_and_leaves_training_alone() -> None:
    encoder, train, test = (
        small_encoder(),
        coloured(40, 3, name="train"),
        coloured(21, 3, seed=1, name="test"),
    )
    encoder.backbone.train()
    probe = KnnProbe(train, test, ks=(5, 1000))
    state = torch.random.get_rng_state()
    numbers = probe.run(encoder)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert encoder.backbone.training
    expected = KnnConfig(ks=(5, 40)).run(encoder, {"train": train, "test": test}, QUIET).numbers
    assert numbers == {f"knn_{name}": value / 100 for name, value in expected.items()}
