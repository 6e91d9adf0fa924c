"""Copy detection: metrics against scikit-learn and slow NumPy, layouts, and the thumbnail baseline on real data."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score

from glocal.data.source import ImageSource
from glocal.errors import ConfigError, DataError, UnreadableImageError
from glocal.evaluation.base import Work
from glocal.evaluation.copy_data import open_copy_folder, open_copydays, open_pairs
from glocal.evaluation.copy_detection import CopyDetection, measure
from glocal.evaluation.copy_metrics import micro_average_precision, recall_at, recall_at_precision
from glocal.evaluation.descriptors import DescriptorConfig, describe, learn_whitening, whiten
from glocal.evaluation.ground_truth import find_ids, read_ground_truth
from glocal.evaluation.ranking import ranks_of_positives, top_candidates, trapezoid_average_precision
from glocal.models.features import Features

QUIET = Work(progress=False)


class Images(ImageSource):
    """Images in memory by key; None is one that can't be decoded."""

    def __init__(self, images: dict[str, np.ndarray | None], name: str = "images") -> None:
        self.images, self.name, self.class_names = images, name, None
        self.labels = None

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        return list(self.images)[index]

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        pixels = self.images[self.key(index)]
        if pixels is None:
            raise UnreadableImageError(f"{self.key(index)} is broken")
        return Image.fromarray(pixels)

    def fingerprint(self) -> str:
        return f"{self.name}-{len(self)}"

    def subset(self, indices) -> ImageSource:
        keys = [self.key(int(i)) for i in indices]
        return Images({key: self.images[key] for key in keys}, self.name)


class Thumbnail(torch.nn.Module):
    """Class token: the input's centred gray pixels. Patches: mean colour of each 4 px patch."""

    def forward(self, pixels: torch.Tensor) -> Features:
        gray = pixels.mean(1).flatten(1)
        patches = F.avg_pool2d(pixels, 4).flatten(2).transpose(1, 2)
        grid = (pixels.shape[2] // 4, pixels.shape[3] // 4)
        return Features(gray - gray.mean(1, keepdim=True), patches, grid, patches)


def thumbnail_encoder(size: int = 16) -> SimpleNamespace:
    backbone = Thumbnail()
    return SimpleNamespace(
        name="thumbnail",
        backbone=backbone,
        embed_dim=size * size,
        patch_size=4,
        image_size=size,
        fingerprint=lambda: "thumbnail",
        normalise=lambda pixels: pixels.float() / 255,
        features=backbone,
        intermediate=lambda pixels, layers: [backbone(pixels) for _ in layers],
    )


def pictures(count: int, seed: int = 0, side: int = 16) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]


# --- metrics -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=40), st.integers(0, 5))
def test_micro_ap_is_sklearns_times_the_share_found(pairs: list[tuple[int, bool]], missed: int) -> None:
    scores = np.array([score / 8 for score, _ in pairs])
    match = np.array([hit for _, hit in pairs])
    if not match.any():
        match[0] = True
    total = int(match.sum()) + missed
    expected = average_precision_score(match, scores) * match.sum() / total
    assert micro_average_precision(scores, match, total) == pytest.approx(expected, abs=1e-12)


def test_micro_ap_by_hand_and_its_errors() -> None:
    # Right, wrong, right of three matches: 1/3 * 1 + 1/3 * 2/3.
    assert micro_average_precision(np.array([3.0, 2.0, 1.0]), np.array([1, 0, 1], bool), 3) == pytest.approx(5 / 9)
    assert micro_average_precision(np.array([]), np.array([], bool), 3) == 0
    with pytest.raises(DataError, match="no matching pair"):
        micro_average_precision(np.array([1.0]), np.array([False]), 0)
    with pytest.raises(DataError, match="NaN"):
        micro_average_precision(np.array([np.nan]), np.array([False]), 1)
    with pytest.raises(DataError, match="twice"):
        micro_average_precision(np.array([1.0, 1.0]), np.array([True, True]), 1)


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
    assert recall_at_precision(scores, match, total, 0.9) == pytest.approx(best)


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
    monkeypatch.setattr("glocal.evaluation.ranking._BLOCK_ELEMENTS", block)
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


def test_top_candidates_equal_a_full_sort() -> None:
    queries, database = F.normalize(torch.randn(9, 5), dim=1), F.normalize(torch.randn(50, 5), dim=1)
    best = top_candidates(queries, database, 7)
    order = (-(queries @ database.T)).argsort(dim=1)[:, :7]
    assert torch.equal(best.item, order)
    assert top_candidates(queries, database, 99).item.shape == (9, 50)


def test_a_collapsed_model_scores_zero_not_the_order_of_files() -> None:
    same = torch.ones(5, 3) / 3**0.5
    numbers, _ = measure(same, same, [np.array([i]) for i in range(5)], [""] * 5)
    assert numbers["recall_at_1"] == 0
    assert numbers["map"] == pytest.approx(100 / (2 * 5))


def test_search_refuses_what_would_give_a_wrong_number() -> None:
    good = torch.eye(3)
    with pytest.raises(DataError, match="aren't finite"):
        ranks_of_positives(good * torch.nan, good, [np.array([0])] * 3)
    with pytest.raises(DataError, match="dimensions"):
        top_candidates(good, torch.eye(4), 1)
    with pytest.raises(DataError, match="none of it 0"):
        top_candidates(good, good[:0], 1)
    with pytest.raises(DataError, match="database item 3"):
        ranks_of_positives(good[:1], good, [np.array([3])])
    with pytest.raises(DataError, match="positive and junk"):
        ranks_of_positives(good[:1], good, [np.array([1])], [np.array([1])])
    with pytest.raises(ConfigError, match="1 or more"):
        top_candidates(good, good, 0)


# --- descriptors ---------------------------------------------------------------------------------------------------


def test_whitening_gives_unit_covariance_and_keeps_leading_axes() -> None:
    torch.manual_seed(0)
    data = torch.randn(500, 6) @ torch.randn(6, 6) + 3
    whitened = ((data - (learnt := learn_whitening(data)).mean) @ learnt.projection).numpy()
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(6), atol=1e-3)
    small = learn_whitening(data, 2)
    exact = data.numpy().astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(exact.T, bias=True))
    expected = (exact - exact.mean(0)) @ vectors[:, ::-1][:, :2] / np.sqrt(values[::-1][:2])
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


def test_longer_side_keeps_the_aspect() -> None:
    seen: list[tuple[int, ...]] = []
    encoder = thumbnail_encoder()
    encoder.features = lambda pixels: (
        seen.append(tuple(pixels.shape))
        or Features(torch.ones(len(pixels), 2), torch.ones(len(pixels), 4, 2), (2, 2), torch.ones(len(pixels), 4, 2))
    )
    image = np.zeros((60, 120, 3), np.uint8)
    describe(encoder, Images({"a": image}), DescriptorConfig(resize="longer", size=32, scales=(1.0, 0.5)), QUIET)
    assert seen == [(1, 3, 16, 32), (1, 3, 8, 16)]


# --- files ---------------------------------------------------------------------------------------------------------


def test_ground_truth_with_and_without_header(tmp_path: Path) -> None:
    bare, header = tmp_path / "bare.csv", tmp_path / "header.csv"
    bare.write_text("Q1,R1\nQ2,\n\nQ1,R2\n")
    header.write_text("﻿reference_id,query_id,transform\r\nR1,Q1,blur\r\n,Q2,\r\nR2,Q1,blur\r\n", encoding="utf-8")
    expected = {"Q1": ["R1", "R2"], "Q2": []}
    assert read_ground_truth(bare).references == expected
    read = read_ground_truth(header)
    assert read.references == expected
    assert read.attack == {"Q1": "blur"}
    assert read.pairs == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("query_id,reference_id\n", "no rows"),
        ("Q1\n", "line 1: 1 column"),
        ("Q1,R1\nQ1,R1\n", "line 2.*twice"),
        ("Q1,R1\nQ1,\n", "with and without"),
        (",R1\n", "empty"),
    ],
)
def test_bad_ground_truth_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_ground_truth(tmp_path / "t.csv")


def test_isc_files_are_read_as_they_are(real_data: Path) -> None:
    folder = real_data / "isc2021_groundtruth"
    public = read_ground_truth(folder / "public_ground_truth.csv")
    subset = read_ground_truth(folder / "subset_1_ground_truth.csv")
    assert (len(public.references), public.pairs) == (25_000, 4_991)
    assert (len(subset.references), subset.pairs) == (4_991, 4_991)
    assert public.references["Q00003"] == ["R326040"]
    assert all(public.references[query] == found for query, found in subset.references.items())


def test_ids_are_keys_or_file_names_or_stems_and_unique() -> None:
    blank = pictures(1)[0]
    source = Images({"x/Q1.jpg": blank, "x/Q2.jpg": blank, "y/Q2.jpg": blank})
    assert find_ids(source, ["x/Q1.jpg", "Q1.jpg", "Q1", "Q9"]) == {"x/Q1.jpg": 0, "Q1.jpg": 0, "Q1": 0}
    with pytest.raises(DataError, match="'Q2' fits 2 images"):
        find_ids(source, ["Q2"])


# --- the protocol --------------------------------------------------------------------------------------------------


def write_copydays(root: Path, images: list[np.ndarray]) -> None:
    for number, image in enumerate(images):
        for folder, pixels in (("original", image), ("jpeg/75", image), ("strong", 255 - image)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            last = "01" if folder == "strong" else "00"
            Image.fromarray(pixels).save(root / folder / f"{2000 + number}{last}.png")


def test_copydays_by_attack(tmp_path: Path) -> None:
    write_copydays(tmp_path, pictures(4))
    Image.fromarray(pictures(1, 9)[0]).save(tmp_path / "strong" / "999901.png")
    result = CopyDetection().run(thumbnail_encoder(), tmp_path, QUIET)
    assert [(row["attack"], row["queries"]) for row in result.rows] == [("jpeg/75", 4), ("strong", 4)]
    assert result.numbers["map/jpeg/75"] == 100
    # Negatives correlate at -1 with their original: last of four.
    assert result.numbers["map/strong"] < 50
    assert any("1 attacked images show no known original" in note for note in result.notes)
    assert result.settings["resolution"] == [16]


def test_copydays_layout_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="original/"):
        open_copydays(tmp_path)
    write_copydays(tmp_path, pictures(2))
    Image.fromarray(pictures(1)[0]).save(tmp_path / "original" / "200033.png")
    with pytest.raises(DataError, match="numbered 2000"):
        open_copydays(tmp_path)


def test_distractors_whitening_and_batch_size(tmp_path: Path) -> None:
    images = pictures(6)
    table = tmp_path / "t.csv"
    table.write_text("".join(f"q{i},r{i}\n" for i in range(5)) + "q5,\n")
    noise = np.random.default_rng(1).integers(-90, 90, images[0].shape)
    noisy = [np.clip(image + noise, 0, 255).astype(np.uint8) for image in images]
    data = {
        "queries": Images({f"q{i}.png": p for i, p in enumerate(noisy)}, "queries"),
        "references": Images({f"r{i}.png": p for i, p in enumerate(images)}, "references"),
        "distractors": Images({f"d{i}.png": p for i, p in enumerate(pictures(40, 5))}, "distractors"),
        "whitening": Images({f"w{i}.png": p for i, p in enumerate(pictures(300, 6))}, "whitening"),
    }
    config = CopyDetection(ground_truth=str(table), whitening_dim=32)
    one, many = (config.run(thumbnail_encoder(), data, Work(batch_size=b, progress=False)) for b in (1, 64))
    assert one.numbers == many.numbers
    assert one.settings["database_size"] == 46
    assert one.numbers["recall_at_1"] == 100
    assert one.numbers["queries_without_reference"] == 1
    del data["whitening"]
    with pytest.raises(ConfigError, match="needs whitening"):
        config.run(thumbnail_encoder(), data, QUIET)


def test_missing_and_unreadable_images_are_counted_not_scored(tmp_path: Path) -> None:
    images = pictures(4)
    table = tmp_path / "t.csv"
    table.write_text("q0,r0\nq1,r1\nq2,r2\nq3,r3\nq8,r0\n")
    queries = Images({**{f"q{i}": p for i, p in enumerate(images)}, "q9": images[0], "q2": None}, "queries")
    references = Images({"r0": images[0], "r1": None, "r2": images[2]}, "references")
    config = CopyDetection(ground_truth=str(table))
    result = config.run(thumbnail_encoder(), {"queries": queries, "references": references}, QUIET)
    notes = "\n".join(result.notes)
    assert result.numbers["queries"] == 1
    assert result.numbers["map"] == 100
    assert "1 queries of the ground truth have no image, left out: q8" in notes
    assert "reference without an image, left out: q3" in notes
    assert "1 query images aren't in the ground truth" in notes
    assert "1 queries have an unreadable reference" in notes
    assert "q2 is broken" in notes
    with pytest.raises(DataError, match="None of the ground truth's 5 pairs"):
        open_pairs(queries, Images({"other": images[0]}, "others"), read_ground_truth(table))
    with pytest.raises(DataError, match="ground_truth="):
        CopyDetection().run(thumbnail_encoder(), {"queries": queries, "references": references}, QUIET)


def test_recall_counts_queries_not_pairs() -> None:
    assert recall_at([np.array([0, 4]), np.array([2])], 1) == 0.5
    with pytest.raises(DataError, match="No query"):
        recall_at([], 1)


# --- real data -----------------------------------------------------------------------------------------------------


def gray_thumbnails(source: ImageSource) -> torch.Tensor:
    """16x16 gray thumbnails (bilinear), mean removed, length 1: the baseline of the data's description."""
    rows = [
        np.asarray(source.read(i).convert("L").resize((16, 16), Image.Resampling.BILINEAR), np.float64).ravel()
        for i in range(len(source))
    ]
    rows = np.stack(rows)
    rows -= rows.mean(1, keepdims=True)
    return torch.from_numpy(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def test_the_thumbnail_baseline_of_real_attacks_is_reproduced(real_data: Path) -> None:
    references = real_data / "imagenet_sample_1k" / "train-00000-of-00001.parquet"
    data = open_copy_folder(real_data / "copydetect_mini", references=str(references))
    assert (len(data.queries), len(data.references), sum(len(p) == 0 for p in data.positives)) == (1200, 1000, 120)
    queries, database = gray_thumbnails(data.queries), gray_thumbnails(data.references)
    numbers, rows = measure(queries, database, data.positives, data.attack, candidates=1)
    assert numbers["recall_at_1"] == pytest.approx(48.8, abs=0.05)
    assert numbers["micro_ap"] == pytest.approx(47.6, abs=0.05)
    expected = dict.fromkeys(("blur", "jpeg", "gray_gamma", "overlay"), 100.0)
    expected.update(crop=12.5, flip_color=22.5, strong=4.2, rotate=0, paste=0)
    assert {r["attack"]: r["recall_at_1"] for r in rows} == pytest.approx(expected, abs=0.05)
    # The same pairs by scikit-learn.
    scores = (queries @ database.T).numpy()
    best = scores.argmax(1)
    match = [len(p) > 0 and p[0] == b for p, b in zip(data.positives, best, strict=True)]
    assert numbers["micro_ap"] == pytest.approx(100 * average_precision_score(match, scores.max(1)) * sum(match) / 1080)
