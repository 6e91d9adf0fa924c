"""Crops against Pillow's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glocal.views.render import crop_and_resize


def _picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise over a smooth ramp: edges, flat parts and saturated values."""
    generator = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, width)[None, :, None] + np.linspace(-60, 60, height)[:, None, None]
    return np.clip(ramp + generator.normal(0, 60, (height, width, 3)), 0, 255).astype(np.uint8)


def _pillow(picture: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """Columns first, then rows, 8 bits in between: one call of Pillow may take the other order, which shows where the
    kernel overshoots black or white."""
    top, left, tall, wide = box
    crop = Image.fromarray(picture).crop((left, top, left + wide, top + tall))
    crop = crop.resize((size[1], tall), Image.Resampling.BICUBIC)
    return np.asarray(crop.resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_pillow(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = (top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left)))
    size = (data.draw(st.integers(1, 48)), data.draw(st.integers(1, 48)))
    picture = _picture(height, width)
    ours = crop_and_resize(torch.from_numpy(picture), box, size)
    assert ours.dtype == torch.uint8 and ours.shape == (3, *size)
    assert np.abs(ours.permute(1, 2, 0).numpy().astype(int) - _pillow(picture, box, size)).max() <= 2
    soft = 60 + picture // 2
    crop = Image.fromarray(soft).crop((left, top, left + box[3], top + box[2]))
    in_one = np.asarray(crop.resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
    ours = crop_and_resize(torch.from_numpy(soft), box, size)
    assert np.abs(ours.permute(1, 2, 0).numpy().astype(int) - in_one).max() <= 2


@pytest.mark.parametrize(
    ("box", "side"), [((20, 30, 300, 360), 224), ((100, 100, 170, 190), 96), ((0, 0, 32, 32), 224)]
)
def test_equals_pillow_at_the_sizes_of_the_recipes(box: tuple[int, int, int, int], side: int) -> None:
    picture = _picture(400, 500)
    ours = crop_and_resize(torch.from_numpy(picture), box, (side, side)).permute(1, 2, 0).numpy()
    difference = np.abs(ours - _pillow(picture, box, (side, side)))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02


def test_flip_mirrors_and_a_whole_box_of_equal_size_is_a_copy() -> None:
    picture = torch.from_numpy(_picture(40, 56))
    assert torch.equal(crop_and_resize(picture, (0, 0, 40, 56), (40, 56)), picture.permute(2, 0, 1))
    straight = crop_and_resize(picture, (3, 5, 20, 31), (16, 24))
    assert torch.equal(crop_and_resize(picture, (3, 5, 20, 31), (16, 24), flip=True), straight.flip(-1))


def test_nothing_outside_the_box_is_seen() -> None:
    picture = np.zeros((60, 60, 3), dtype=np.uint8)
    picture[20:40, 20:40] = 200
    assert (crop_and_resize(torch.from_numpy(picture), (20, 20, 20, 20), (7, 7)) == 200).all()
