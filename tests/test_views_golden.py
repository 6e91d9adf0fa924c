"""Views of fixed images as they were at commit a1212e2: whatever changes inside, these figures must not.

Every figure is the mean over a group's normalised views of pixels times a fixed wave, so that it moves with any change
of crop, flip, colour or place by more than rounding. Batches cover plain, patch-wise, student-only and strong pipelines.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from glocal.data import ImageSource
from glocal.views.augment import augment
from glocal.views.groups import ViewGroup
from glocal.views.loader import ViewDataset
from glocal.views.photometric import presets
from glocal.views.sampling import EpochSampler


class Mosaics(ImageSource):
    """Coloured blocks under noise, of various sizes."""

    name = "mosaics"

    def __len__(self) -> int:
        return 20

    def key(self, index: int) -> str:
        return str(index)

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        generator = np.random.default_rng(index)
        height, width = generator.integers(50, 90, 2)
        blocks = generator.integers(0, 226, (12, 12, 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
        return Image.fromarray((blocks + generator.integers(0, 30, blocks.shape)).astype(np.uint8))

    def fingerprint(self) -> str:
        return 16 * "0"


def _pair(*pipelines: presets.Pipeline, **options: object) -> ViewGroup:
    return ViewGroup(count=2, size=48, area=(0.3, 1.0), photometric=pipelines, **options)


DINO = (presets.dino_global_1(), presets.dino_global_2())
GROUPS = {
    "global": _pair(*DINO),
    "local": ViewGroup(
        count=4, size=32, area=(0.1, 0.4), photometric=(presets.dino_local(),), seen_by="student"
    ),
    "code": _pair(*(pipeline + presets.patch_code(seen_by="student") for pipeline in DINO)),
    "literal": _pair(presets.patch_literal(), seen_by="student"),
    "strong": _pair(*DINO, strong=presets.mugs_strong(), strong_coin="image", seen_by="student"),
    "teacher": _pair(presets.patch_literal(seen_by="student"), seen_by="teacher"),
}
GOLDEN = {
    "global": 0.212193,
    "local": 0.286633,
    "code": 0.147212,
    "literal": 0.102480,
    "strong": 0.023827,
    "teacher": 0.261755,
    "code, teacher": 0.295552,
}


def _figure(pixels: Tensor) -> float:
    wave = torch.sin(torch.arange(pixels.numel(), dtype=torch.float64) * 0.37).view(pixels.shape)
    return float((pixels.double() * (1 + wave)).mean())


@pytest.fixture(scope="module")
def figures() -> dict[str, float]:
    dataset, sampler = ViewDataset(Mosaics(), GROUPS), EpochSampler(20, 10, 7, total_steps=4)
    views = dataset.render(sampler.at(3)).views
    seen = augment(views, GROUPS, 16).groups
    figures = {name: _figure(group.pixels) for name, group in seen.items()}
    return figures | {
        f"{name}, teacher": _figure(group.teacher_pixels)
        for name, group in seen.items()
        if group.teacher_pixels is not None
    }


@pytest.mark.parametrize("name", list(GOLDEN))
def test_views_are_those_of_the_first_release(figures: dict[str, float], name: str) -> None:
    assert figures[name] == pytest.approx(GOLDEN[name], abs=2e-4)


def test_every_kind_of_view_has_a_figure(figures: dict[str, float]) -> None:
    assert figures.keys() == GOLDEN.keys()
