"""k-NN, retrieval and linear segmentation against slow versions, on bad input, and at any batch size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from dense_fakes import QUIET, MaskSource, blocks, colour_encoder
from scipy import stats

from glocal.errors import ConfigError, DataError, ModelError
from glocal.evaluation.base import ProtocolConfig
from glocal.evaluation.segmentation.dense_features import (
    class_shares,
    cut_mask,
    resize_mask,
    standardisation,
    upsample,
)
from glocal.evaluation.segmentation.hummingbird import Hummingbird, rarity_scores, soft_vote
from glocal.evaluation.segmentation.knn_segmentation import KnnSegmentation, majority
from glocal.evaluation.segmentation.linear_segmentation import (
    LinearHead,
    LinearSegmentation,
    LinearSegmentation100,
)
from glocal.evaluation.segmentation.sliding import window_starts
from glocal.extraction import nearest as search
from glocal.extraction.nearest import nearest
from glocal.extraction.work import Work
from glocal.schedules import warmup_cosine

PROTOCOLS = [
    KnnSegmentation(size=32),
    Hummingbird(size=32, memory=200),
    LinearSegmentation(size=32, augment=False, steps=60, rate=0.05, batch=4),
    LinearSegmentation100(size=32, augment=False, epochs=20, rate=1.0, batch=4, output=32),
]
NAMES = [protocol.protocol for protocol in PROTOCOLS]


def data(train: int = 20, test: int = 6) -> dict[str, MaskSource]:
    return {"train": blocks(train, seed=1, name="t/train"), "test": blocks(test, seed=2, name="t/test")}


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=NAMES)
def test_colours_are_told_apart(protocol: ProtocolConfig) -> None:
    result = protocol.run(colour_encoder(), data(), QUIET)
    assert result.numbers["mIoU"] > (99 if result.protocol == "knn-seg" else 80)
    assert result.notes == [] and len(result.rows) == 3
    assert {"resolution", "layer", "norm", "features"} <= set(result.settings)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=NAMES)
def test_numbers_do_not_depend_on_batch_size(protocol: ProtocolConfig) -> None:
    results = [protocol.run(colour_encoder(), data(), Work(batch_size=n, progress=False)) for n in (1, 3, 64)]
    assert results[0].numbers == results[1].numbers == results[2].numbers


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=NAMES)
def test_bad_images_are_skipped_counted_and_named(protocol: ProtocolConfig) -> None:
    sources = data()
    sources["test"].bad = (1,)
    sources["test"].masks[2] = np.zeros((5, 9), np.uint8)
    sources["test"].masks[3] = np.full((32, 32), 255, np.uint8)
    sources["train"].masks[0] = np.full((32, 32), 255, np.uint8)
    notes = "\n".join(protocol.run(colour_encoder(), sources, QUIET).notes)
    assert "t/test: skipped 2 unreadable images" in notes and "1.png" in notes and "mask is 9x5" in notes
    assert "t/test: 1 image(s) hold only ignored pixels: 3.png" in notes and "t/train: 1 image(s)" in notes


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=NAMES)
def test_a_class_absent_in_test_is_named(protocol: ProtocolConfig) -> None:
    sources = data()
    sources["test"].masks = [
        np.where(mask == 2, 255, mask).astype(np.uint8) for mask in sources["test"].masks
    ]
    result = protocol.run(colour_encoder(), sources, QUIET)
    assert any("absent in the scored masks" in note and ": 2" in note for note in result.notes)
    assert result.rows[2]["class"] == "2"


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=NAMES)
def test_hopeless_input_is_refused(protocol: ProtocolConfig) -> None:
    with pytest.raises(ModelError, match="patch tokens"):
        protocol.run(colour_encoder(patches=False), data(), QUIET)
    empty = data()
    empty["test"].masks = [np.full((32, 32), 255, np.uint8)] * 6
    with pytest.raises(DataError, match="only ignored"):
        protocol.run(colour_encoder(), empty, QUIET)
    without = data()
    without["train"].has_masks = False
    with pytest.raises(DataError, match="no masks"):
        protocol.run(colour_encoder(), without, QUIET)
    with pytest.raises(ConfigError, match="multiple"):
        type(protocol).model_validate({"size": 30}).run(colour_encoder(), data(), QUIET)


def test_augmented_training_learns_and_repeats() -> None:
    protocol = LinearSegmentation(size=32, steps=80, rate=0.05, batch=4, scales=(1.0, 2.0))
    first, second = (protocol.run(colour_encoder(), data(), QUIET) for _ in range(2))
    assert first.numbers == second.numbers and first.numbers["mIoU"] > 75
    assert "sliding" in first.settings["resolution"]
    hundred = LinearSegmentation100(size=32, epochs=20, rate=1.0, batch=4, output=32)
    assert hundred.run(colour_encoder(), data(), QUIET).numbers["mIoU"] > 75


def test_the_fast_route_is_the_named_form_without_augmentation() -> None:
    for protocol in (LinearSegmentation, LinearSegmentation100):
        fast = protocol.quick(colour_encoder())
        assert fast.protocol == protocol().protocol and not fast.augment and protocol().augment


def test_nearest_rows_equal_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BANK_CHUNK", 7)
    queries, memory = torch.randn(5, 6), torch.randn(40, 6)
    for distance in ("cosine", "L2"):
        values, places = nearest(queries, memory, 9, distance)
        full = queries @ memory.T if distance == "cosine" else -torch.cdist(queries.double(), memory.double())
        assert torch.equal(places, full.argsort(1, descending=True)[:, :9])
        assert (values.diff(dim=1) <= 0).all()
    assert nearest(queries, memory[:4], 9)[1].shape == (5, 4)


def test_majority_equals_mode() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (6, 9, 5)).astype(np.uint8)
    assert np.array_equal(majority(torch.from_numpy(labels), 4).numpy(), stats.mode(labels, axis=1).mode)
    labels[0, :8] = 255
    assert majority(torch.from_numpy(labels), 4)[0].tolist() == labels[0, 8].tolist()


def test_knn_segmentation_equals_a_slow_version() -> None:
    sources = data(6, 2)
    encoder = colour_encoder()
    for source in sources.values():  # noise, so that neighbours disagree
        source.pixels = np.random.default_rng(3).integers(0, 255, source.pixels.shape).astype(np.uint8)
    result = KnnSegmentation(size=32, neighbours=(3,), distances=("cosine",)).run(encoder, sources, QUIET)

    def patches(source: MaskSource) -> tuple[np.ndarray, np.ndarray]:
        features, labels = [], []
        for index in range(len(source)):
            pixels = encoder.normalise(torch.from_numpy(source.pixels[index]).permute(2, 0, 1)[None])
            features.append(encoder.features(pixels).patches[0].numpy())
            labels += [
                source.masks[index][r : r + 8, c : c + 8].ravel()
                for r in range(0, 32, 8)
                for c in range(0, 32, 8)
            ]
        return np.concatenate(features).astype(float), np.array(labels)

    memory, known = patches(sources["train"])
    queries, truth = patches(sources["test"])
    mean, deviation = memory.mean(0), memory.std(0)
    memory, queries = (memory - mean) / deviation, (queries - mean) / deviation
    predicted = []
    for query in queries:
        cosine = memory @ query / np.linalg.norm(memory, axis=1) / np.linalg.norm(query)
        predicted.append(stats.mode(known[np.argsort(-cosine)[:3]], axis=0).mode)
    accuracy = 100 * (np.array(predicted) == truth).mean()
    assert result.numbers["pixel_accuracy"] == pytest.approx(accuracy)


def test_hummingbird_equals_a_slow_version() -> None:
    encoder, sources = colour_encoder(), data(4, 3)
    protocol = Hummingbird(size=32, memory=64, passes=1, neighbours=5)
    result = protocol.run(encoder, sources, QUIET)

    def unit(source: MaskSource, index: int) -> np.ndarray:
        pixels = encoder.normalise(torch.from_numpy(source.pixels[index]).permute(2, 0, 1)[None])
        found = encoder.features(pixels).patches[0].double().numpy()
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))

    # 64 entries over 4 images of 16 patches: everything is stored, so the draw doesn't matter.
    train = sources["train"]
    memory = np.concatenate([unit(train, i) for i in range(4)])
    shares: list[list[float]] = []
    for mask in train.masks:
        for r in range(0, 32, 8):
            for c in range(0, 32, 8):
                shares.append([(mask[r : r + 8, c : c + 8] == k).mean() for k in range(3)])
    hits = total = 0
    for index in range(3):
        soft = np.zeros((16, 3))
        for row, query in enumerate(unit(sources["test"], index)):
            cosine = memory @ query
            best = np.argsort(-cosine)[:5]
            weight = np.exp(cosine[best] / 0.02 - cosine[best].max() / 0.02)
            soft[row] = (weight / weight.sum()) @ np.array(shares)[best]
        image = torch.from_numpy(soft.T.reshape(1, 3, 4, 4))
        large = (
            torch.nn.functional.interpolate(image, (32, 32), mode="bilinear", align_corners=False)[0]
            .argmax(0)
            .numpy()
        )
        hits, total = hits + (large == sources["test"].masks[index]).sum(), total + large.size
    assert result.picked["entries"] == 64
    assert result.numbers["pixel_accuracy"] == pytest.approx(100 * hits / total, abs=0.05)


def test_rare_classes_are_preferred() -> None:
    generator = np.random.default_rng(0)
    shares = np.zeros((100, 3))
    shares[:, 0] = 1
    shares[:4] = [0, 1, 0]  # 4 patches of class 1, 95 of class 0
    shares[99] = 0  # one without a scored pixel
    scores = np.array([rarity_scores(shares, generator.random(100)) for _ in range(200)])
    kept = np.argsort(scores, axis=1)[:, :10]
    assert (kept < 4).sum(1).mean() > 3.5
    assert np.isinf(scores[:, 99]).all()
    slow = [sum(sum(shares[:, c] > 0) for c in range(3) if shares[p, c] > 0) for p in range(99)]
    assert np.allclose(rarity_scores(shares, np.full(100, 0.5))[:99], 0.5 * np.array(slow))


def test_soft_vote_weights_by_similarity() -> None:
    voted = soft_vote(torch.tensor([[1.0, 0.98]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), 0.02)
    share = np.exp(1.0) / (1 + np.exp(1.0))
    assert voted[0].tolist() == pytest.approx([share, 1 - share], abs=1e-5)


def test_masks_are_cut_into_patches_row_by_row() -> None:
    mask = np.arange(24, dtype=np.uint8).reshape(4, 6)
    cut = cut_mask(mask, (2, 3), 2)
    assert cut[1].tolist() == [2, 3, 8, 9] and cut[3].tolist() == [12, 13, 18, 19]
    assert np.array_equal(resize_mask(mask, (2, 3)), mask[1::2, 1::2])
    shares = class_shares(np.array([[0, 1, 1, 255], [255] * 4], np.uint8), 2)
    assert np.allclose(shares, np.array([[1 / 3, 2 / 3], [0, 0]]))
    corners = upsample(torch.tensor([[0.0], [1.0]]), (1, 2), (1, 4))
    assert corners[0, 0].tolist() == [0, 0.25, 0.75, 1]


def test_standardisation_equals_numpy() -> None:
    features = torch.randn(50, 4) * torch.tensor([1, 10, 0.1, 0]) + 5
    mean, deviation = standardisation(features)
    assert np.allclose(mean, features.double().numpy().mean(0), atol=1e-5)
    assert np.allclose(deviation[:3], features.double().numpy().std(0)[:3], rtol=1e-4) and deviation[3] == 1


def test_windows_cover_everything() -> None:
    for length in range(1, 60):
        starts = window_starts(length, 16, 11)
        covered = set().union(*(range(s, s + 16) for s in starts))
        assert set(range(length)) <= covered and (length < 16 or max(covered) == length - 1)


def test_learning_rate_rises_then_falls_to_zero() -> None:
    rate = warmup_cosine(10, 100)
    values = [rate(step) for step in range(101)]
    assert values[9] == values[10] == 1 and values[100] == pytest.approx(0)
    assert all(a < b for a, b in itertools.pairwise(values[:10]))


def test_enlarging_logits_equals_enlarging_features() -> None:
    head = LinearHead(6, 3, 0.0, False, seed=0)
    maps = torch.randn(2, 6, 4, 5)

    def enlarge(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(x, (10, 10), mode="bilinear", align_corners=False)

    assert torch.allclose(head(enlarge(maps)), enlarge(head(maps)), atol=1e-6)
