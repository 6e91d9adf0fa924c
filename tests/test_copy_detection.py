"""Copy detection: files, layouts, the protocol, and the thumbnail baseline on real data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from copy_fakes import QUIET, Images, pictures, thumbnail_encoder
from PIL import Image
from sklearn.metrics import average_precision_score

from glocal.data.source import ImageSource
from glocal.errors import ConfigError, DataError
from glocal.evaluation.retrieval.copy_data import open_copy_folder, open_copydays, open_pairs
from glocal.evaluation.retrieval.copy_detection import CopyDetection, measure
from glocal.evaluation.retrieval.ground_truth import find_ids, read_ground_truth
from glocal.extraction.work import Work

# --- files ---------------------------------------------------------------------------------------------------------


def test_ground_truth_with_and_without_header(tmp_path: Path) -> None:
    bare, header = tmp_path / "bare.csv", tmp_path / "header.csv"
    bare.write_text("Q1,R1\nQ2,\n\nQ1,R2\n")
    header.write_text(
        "﻿reference_id,query_id,transform\r\nR1,Q1,blur\r\n,Q2,\r\nR2,Q1,blur\r\n", encoding="utf-8"
    )
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
    queries, database = torch.eye(3)[:2], torch.eye(3)
    database[2] = torch.tensor([0.6, 0.8, 0.0])
    figures = measure(queries, database, [np.array([0, 2]), np.array([2])], ["", ""])
    assert figures.samples["recall_at_1"].figure() == 50
    with pytest.raises(DataError, match="None of 2 queries has a reference"):
        measure(queries, database, [np.empty(0, np.int64)] * 2, ["", ""])


# --- real data -----------------------------------------------------------------------------------------------------


def gray_thumbnails(source: ImageSource) -> torch.Tensor:
    """16x16 gray thumbnails (bilinear), mean removed, length 1: the baseline of the data's description."""
    rows = [
        np.asarray(
            source.read(i).convert("L").resize((16, 16), Image.Resampling.BILINEAR), np.float64
        ).ravel()
        for i in range(len(source))
    ]
    stacked = np.stack(rows)
    stacked -= stacked.mean(1, keepdims=True)
    return torch.from_numpy(stacked / np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-12))


def test_the_thumbnail_baseline_of_real_attacks_is_reproduced(real_data: Path) -> None:
    references = real_data / "imagenet_sample_1k" / "train-00000-of-00001.parquet"
    data = open_copy_folder(real_data / "copydetect_mini", references=str(references))
    assert (len(data.queries), len(data.references), sum(len(p) == 0 for p in data.positives)) == (
        1200,
        1000,
        120,
    )
    queries, database = gray_thumbnails(data.queries), gray_thumbnails(data.references)
    _, rows, samples = measure(queries, database, data.positives, data.attack, candidates=1)
    numbers = {name: values.figure() for name, values in samples.items()}
    assert numbers["recall_at_1"] == pytest.approx(48.8, abs=0.05)
    assert numbers["micro_ap"] == pytest.approx(47.6, abs=0.05)
    expected = dict.fromkeys(("blur", "jpeg", "gray_gamma", "overlay"), 100.0)
    expected.update(crop=12.5, flip_color=22.5, strong=4.2, rotate=0, paste=0)
    assert {r["attack"]: r["recall_at_1"] for r in rows} == pytest.approx(expected, abs=0.05)
    # The same pairs by scikit-learn.
    scores = (queries @ database.T).numpy()
    best = scores.argmax(1)
    match = [len(p) > 0 and p[0] == b for p, b in zip(data.positives, best, strict=True)]
    assert numbers["micro_ap"] == pytest.approx(
        100 * average_precision_score(match, scores.max(1)) * sum(match) / 1080
    )
