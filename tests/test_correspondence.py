"""Patch correspondence: geometry against a slow search, a model that must be perfect, pixels as control."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluation_fakes import SameAtEveryLayer, encoder_of_raw_pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glocal.config import validate
from glocal.data.source import ImageSource
from glocal.errors import ConfigError, DataError, ModelError, UnreadableImageError
from glocal.evaluation.correspondence import Correspondence, ViewPairs, draw_view_pairs, judge, right_patches
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.models.features import Features

QUIET = Work(progress=False)


class Ramps(ImageSource):
    """Images whose red says the column and whose green says the row; number `broken` can't be decoded."""

    def __init__(self, count: int, broken: int = -1) -> None:
        self.count, self.broken, self.name = count, broken, "ramps"

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"ramp{index}"

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        if index == self.broken:
            raise UnreadableImageError("ramp is broken")
        height, width = 90 + index, 120
        rows, columns = np.meshgrid(np.linspace(0, 255, height), np.linspace(0, 255, width), indexing="ij")
        return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8))

    def fingerprint(self) -> str:
        return "ramps"


class Position(SameAtEveryLayer):
    """Patches: the mean colour lifted to the sphere, so that the nearest by cosine is the nearest in colour."""

    def forward(self, pixels: torch.Tensor) -> Features:
        colour = F.avg_pool2d(pixels[:, :2], 8).flatten(2).transpose(1, 2) - 0.5
        patches = torch.cat(
            [colour, torch.full_like(colour[..., :1], 4.0), -(colour**2).sum(-1, keepdim=True)], dim=-1
        )
        # For small c, (c, 4, -|c|^2) normalised keeps order of |c - c'| well enough.
        return Features(patches.mean(1), patches, (pixels.shape[2] // 8, pixels.shape[3] // 8), patches)


def encoder_of(backbone: SameAtEveryLayer) -> Encoder:
    return encoder_of_raw_pixels("fake", backbone, 4, 8, 64)


def slow_right_patch(box: np.ndarray, flip: np.ndarray, patch: int, side: int) -> int:
    """The cell of the second view that holds the centre of `patch` of the first, one patch at a time."""
    row, column = divmod(patch, side)
    if flip[0]:
        column = side - 1 - column
    y = box[0, 0] + (row + 0.5) / side * box[0, 2]
    x = box[0, 1] + (column + 0.5) / side * box[0, 3]
    row, column = ((y - box[1, 0]) / box[1, 2] * side, (x - box[1, 1]) / box[1, 3] * side)
    if not (0 <= row < side and 0 <= column < side):
        return -1
    column = int(column)
    return int(row) * side + (side - 1 - column if flip[1] else column)


@settings(max_examples=40, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 9))
def test_right_patches_against_one_patch_at_a_time(seed: int, side: int) -> None:
    pairs = draw_view_pairs(seed, np.arange(3), (0.1, 1.0), (0.5, 2.0), 0.5)
    found = right_patches(pairs, (side, side)).numpy()
    for image in range(3):
        expected = [
            slow_right_patch(pairs.box[image], pairs.flip[image], p, side) for p in range(side * side)
        ]
        assert found[image].tolist() == expected


def test_views_lie_inside_and_depend_on_seed_and_image_only() -> None:
    pairs = draw_view_pairs(3, np.arange(2000), (0.3, 0.9), (0.75, 1.5), 0.25)
    top_left, sides = pairs.box[..., :2], pairs.box[..., 2:]
    assert (top_left >= 0).all() and (top_left + sides <= 1 + 1e-12).all()
    area = sides.prod(-1)
    assert area[sides.max(-1) < 1].min() >= 0.3 - 1e-9 and area.max() <= 0.9 + 1e-9
    assert pairs.flip.mean() == pytest.approx(0.25, abs=0.03)
    alone = draw_view_pairs(3, np.array([1234]), (0.3, 0.9), (0.75, 1.5), 0.25)
    np.testing.assert_array_equal(alone.box[0], pairs.box[1234])
    assert not np.array_equal(pairs.box[0, 0], pairs.box[0, 1])
    with pytest.raises(ConfigError, match="area"):
        draw_view_pairs(0, np.arange(1), (0.9, 0.3), (1, 1), 0)


def test_judge_against_loops() -> None:
    rng = np.random.default_rng(0)
    grid = (4, 5)
    a, b = torch.from_numpy(rng.normal(size=(20, 3))), torch.from_numpy(rng.normal(size=(20, 3)))
    b[:10] = a[:10] * 3
    right = torch.from_numpy(np.where(rng.random(20) < 0.8, np.arange(20), -1))
    exact, near = [], []
    for patch in range(20):
        if right[patch] < 0:
            continue
        cosines = [float(a[patch] @ v / a[patch].norm() / v.norm()) for v in b]
        row, column = divmod(int(np.argmax(cosines)), 5)
        wanted_row, wanted_column = divmod(int(right[patch]), 5)
        exact.append((row, column) == (wanted_row, wanted_column))
        near.append(abs(row - wanted_row) <= 1 and abs(column - wanted_column) <= 1)
    verdicts = judge(a, b, right, grid)
    assert verdicts.exact.tolist() == exact and verdicts.near.tolist() == near
    assert 0 < sum(exact) < len(exact)
    with pytest.raises(ModelError, match="finite"):
        judge(a * torch.nan, b, right, grid)


def test_a_model_that_knows_position_is_right_and_a_constant_one_is_not() -> None:
    config = Correspondence(images=12)
    good = config.run(encoder_of(Position()), {"test": Ramps(12)}, QUIET)
    # Centres off by nearly half a cell can go to the neighbour; anything beyond that is a fault of geometry.
    assert good.numbers["accuracy"] > 85
    assert good.numbers["accuracy_within_one"] == 100
    assert good.numbers["chance"] == pytest.approx(100 / 64)

    class Constant(Position):
        def forward(self, pixels: torch.Tensor) -> Features:
            found = super().forward(pixels)
            return Features(found.cls, torch.ones_like(found.patches), found.grid, found.patches)

    assert config.run(encoder_of(Constant()), {"test": Ramps(12)}, QUIET).numbers["accuracy"] < 5


def test_flips_matter() -> None:
    """The same model without flips or with both: equal; geometry that forgot flips would fall to chance."""
    numbers = [
        Correspondence(images=8, flip=flip).run(encoder_of(Position()), {"test": Ramps(8)}, QUIET).numbers
        for flip in (0.0, 0.5, 1.0)
    ]
    assert min(n["accuracy_within_one"] for n in numbers) == 100


def test_numbers_do_not_depend_on_batch_or_workers_or_other_images() -> None:
    config = Correspondence(images=None)
    works = (Work(batch_size=1, progress=False), Work(batch_size=64, progress=False))
    one, many = (config.run(encoder_of(Position()), {"test": Ramps(9)}, work).numbers for work in works)
    assert one == many


def test_unreadable_images_are_named_once_and_left_out() -> None:
    result = Correspondence(images=None).run(encoder_of(Position()), {"test": Ramps(5, broken=2)}, QUIET)
    assert result.numbers["images"] == 4
    assert result.notes == ["ramps: skipped 1 unreadable image", "  ramp2: ramp is broken"]
    with pytest.raises(DataError, match="no images"):
        Correspondence().run(encoder_of(Position()), {"test": Ramps(0)}, QUIET)
    with pytest.raises(DataError, match="got none"):
        Correspondence().run(encoder_of(Position()), {}, QUIET)
    with pytest.raises(ConfigError, match="multiple"):
        Correspondence(size=63).run(encoder_of(Position()), {"test": Ramps(2)}, QUIET)


def test_views_without_common_ground_are_counted() -> None:
    apart = ViewPairs(np.array([[[0, 0, 0.4, 0.4], [0.6, 0.6, 0.4, 0.4]]]), np.zeros((1, 2), bool))
    assert (right_patches(apart, (4, 4)) == -1).all()
    tiny = Correspondence(images=None, area=(0.01, 0.02))
    result = tiny.run(encoder_of(Position()), {"test": Ramps(40)}, QUIET)
    assert any("share no patch centre" in note for note in result.notes)
    assert result.numbers["images"] < 40


def test_a_photometric_change_reaches_the_second_view_only_and_repeats() -> None:
    """Gray views have lost the colours that say where a patch is; raw pixels of the first view stay as they were."""
    plain = Correspondence(images=6).run(encoder_of(Position()), {"test": Ramps(6)}, QUIET).numbers
    gray = validate(Correspondence, {"images": 6, "photometric": [{"op": "grayscale", "probability": 1.0}]})
    runs = [
        gray.run(encoder_of(Position()), {"test": Ramps(6)}, Work(batch_size=b, progress=False)).numbers
        for b in (1, 64)
    ]
    assert runs[0] == runs[1]
    assert runs[0]["patches"] == plain["patches"]
    assert runs[0]["accuracy"] < plain["accuracy"] / 2
