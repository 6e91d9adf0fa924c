"""SPair-71k: reading annotations, moving points, PCK against loops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluation_fakes import SameAtEveryLayer, encoder_of_raw_pixels
from PIL import Image

from glocal.errors import DataError
from glocal.evaluation.spair import KeypointTransfer, read_pairs, score, square_placement, summarise, transfer
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.models.features import Features

QUIET = Work(progress=False)
SPOTS = np.array([[30, 20], [90, 20], [30, 70], [90, 70]])
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)


class MeanColour(SameAtEveryLayer):
    """Patches: mean colour of each 8 px patch and a little of everything, so that black has a direction too."""

    def forward(self, pixels: torch.Tensor) -> Features:
        colour = F.avg_pool2d(pixels, 8).flatten(2).transpose(1, 2)
        patches = torch.cat([colour, torch.full_like(colour[..., :1], 0.05)], dim=-1)
        return Features(colour.mean(1), patches, (pixels.shape[2] // 8, pixels.shape[3] // 8), patches)


def encoder() -> Encoder:
    return encoder_of_raw_pixels("colour", MeanColour(), 4, 8, 120)


def spotted(spots: np.ndarray, height: int = 90, width: int = 120) -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    for (x, y), colour in zip(spots, COLOURS, strict=True):
        pixels[y - 6 : y + 7, x - 6 : x + 7] = colour
    return Image.fromarray(pixels)


def write_spair(root: Path, box: tuple[int, ...] = (10, 10, 110, 80)) -> None:
    moved = SPOTS + np.array([7, -5])
    for category in ("cat", "dog"):
        (root / "JPEGImages" / category).mkdir(parents=True)
        spotted(SPOTS).save(root / "JPEGImages" / category / "a.png")
        spotted(moved).save(root / "JPEGImages" / category / "b.png")
    folder = root / "PairAnnotation" / "test"
    folder.mkdir(parents=True)
    for category, count in (("cat", 1), ("dog", 3)):
        for number in range(count):
            # The dog's points are labelled wrongly on purpose: half of them can't be right.
            target = moved if category == "cat" else moved[[0, 1, 3, 2]]
            pair = {
                "category": category,
                "src_imname": "a.png",
                "trg_imname": "b.png",
                "src_imsize": [120, 90, 3],
                "trg_imsize": [120, 90, 3],
                "src_kps": SPOTS.tolist(),
                "trg_kps": target.tolist(),
                "trg_bndbox": list(box),
            }
            (folder / f"{number:06d}-a-b:{category}.json").write_text(json.dumps(pair))


def test_pck_by_category_and_its_two_means(tmp_path: Path) -> None:
    write_spair(tmp_path)
    result = KeypointTransfer().run(encoder(), tmp_path, QUIET)
    assert [(r["category"], r["pairs"], r["pck_0.1"]) for r in result.rows] == [
        ("cat", 1, 100),
        ("dog", 3, 50),
    ]
    assert result.numbers["pck_0.1"] == pytest.approx((100 + 3 * 50) / 4)
    assert result.numbers["pck_mean_0.1"] == pytest.approx(75)
    assert result.numbers["pck_0.01"] < result.numbers["pck_0.1"]
    assert result.settings["resolution"] == 120
    few = KeypointTransfer(pairs_per_category=2).run(encoder(), tmp_path, Work(batch_size=1, progress=False))
    assert few.numbers["pairs"] == 3


def test_transfer_goes_to_the_centre_of_the_nearest_patch() -> None:
    rng = np.random.default_rng(0)
    rows, columns, side = 3, 4, 48
    source, target = (F.normalize(torch.from_numpy(rng.normal(size=(12, 5))), dim=1) for _ in range(2))
    points = np.concatenate([rng.random((30, 2)) * side, [[48.0, 48.0], [0.0, 0.0]]])
    found = transfer(points, source, target, (rows, columns), side)
    for (x, y), (to_x, to_y) in zip(points, found, strict=True):
        row, column = min(int(y / 16), rows - 1), min(int(x / 12), columns - 1)
        best = max(range(12), key=lambda k: float(source[row * columns + column] @ target[k]))
        assert (to_x, to_y) == pytest.approx(((best % columns + 0.5) * 12, (best // columns + 0.5) * 16))


def test_score_against_loops() -> None:
    rng = np.random.default_rng(1)
    errors = [rng.random(n) * 0.2 for n in (3, 8, 1)]
    numbers = score(errors)
    for alpha in (0.1, 0.05, 0.01):
        right = [[e < alpha for e in pair] for pair in errors]
        assert numbers[f"pck_{alpha}"] == pytest.approx(100 * sum(map(sum, right)) / 12)
        assert numbers[f"pck_per_image_{alpha}"] == pytest.approx(
            100 * np.mean([sum(r) / len(r) for r in right])
        )
    both = summarise([{"pairs": 3, **numbers}, {"pairs": 1, **{key: 0.0 for key in numbers}}])
    assert both["pck_0.1"] == pytest.approx(0.75 * numbers["pck_0.1"])


def test_square_placement_centres_and_keeps_the_longer_side() -> None:
    scale, offset, size = square_placement((100, 300), 60)
    assert (size, offset) == ((20, 60), (20, 0))
    assert scale == pytest.approx((0.2, 0.2))


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="JPEGImages"):
        KeypointTransfer().run(encoder(), tmp_path, QUIET)
    write_spair(tmp_path)
    (tmp_path / "JPEGImages" / "cat" / "b.png").unlink()
    (tmp_path / "JPEGImages" / "dog" / "extra.png").write_bytes(b"no image")
    folder = tmp_path / "PairAnnotation" / "test"
    empty = json.loads((folder / "000000-a-b:dog.json").read_text())
    empty["src_kps"] = [None] * 4
    (folder / "000002-a-b:dog.json").write_text(json.dumps(empty))
    result = KeypointTransfer().run(encoder(), tmp_path, QUIET)
    assert "1 pairs left out, 1 images are missing: cat/b.png." in result.notes
    assert "1 pairs have no keypoint visible in both images." in result.notes
    assert result.numbers["pairs"] == 2
    (folder / "bad.json").write_text(json.dumps({"category": "cat"}))
    with pytest.raises(DataError, match=r"bad\.json is no pair annotation.*src_kps"):
        read_pairs(tmp_path, "test")
    (folder / "bad.json").write_text(json.dumps({**empty, "trg_bndbox": [5, 5, 5, 9]}))
    with pytest.raises(DataError, match="no area"):
        read_pairs(tmp_path, "test")
    with pytest.raises(DataError, match="from its folder"):
        KeypointTransfer().run(encoder(), {}, QUIET)


def test_an_unreadable_image_drops_its_pairs(tmp_path: Path) -> None:
    write_spair(tmp_path)
    (tmp_path / "JPEGImages" / "cat" / "b.png").write_bytes(b"no image")
    result = KeypointTransfer().run(encoder(), tmp_path, QUIET)
    assert [row["category"] for row in result.rows] == ["dog"]
    assert any("skipped 1 unreadable" in note for note in result.notes)
