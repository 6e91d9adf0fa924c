"""Gaussian blur against a slow version and PIL."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pictures import levels, picture, to_tensor
from PIL import ImageFilter

from glocal.views.photometric import blur


def slow_blur(plane: np.ndarray, sigma: float) -> np.ndarray:
    """Separable Gaussian cut at ceil(2.5 sigma), reflecting without repeating the border."""
    radius = max(1, math.ceil(2.5 * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        pad = [(radius, radius) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(plane, pad, mode="reflect")
        plane = np.apply_along_axis(lambda line: np.convolve(line, taps, mode="valid"), axis, padded)
    return plane


@pytest.mark.parametrize("size", [(16, 16), (16, 40), (48, 40)])
def test_blur_equals_the_slow_version(size: tuple[int, int]) -> None:
    """Tolerance 1e-5 (of 1), by both routes, with every unit's own sigma."""
    pixels = torch.rand(5, 3, *size)
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0])
    ours = blur.gaussian_blur(pixels, sigma, 2.0)
    for unit in range(5):
        for channel in range(3):
            expected = slow_blur(pixels[unit, channel].double().numpy(), float(sigma[unit]))
            assert np.abs(ours[unit, channel].numpy() - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("sigma", "most", "mean"),
    [
        (0.1, 3, 0.1),
        (0.3, 26, 3.5),
        (0.4, 21, 3.0),
        (0.5, 4, 0.7),
        (0.8, 11, 1.5),
        (1.0, 3, 0.7),
        (2.0, 3, 0.6),
    ],
)
def test_difference_to_pil_away_from_the_border(sigma: float, most: float, mean: float) -> None:
    """PIL approximates the Gaussian by three box filters, poorly below half a pixel, and rounds after each."""
    image = picture(80, 72)
    ours = levels(blur.gaussian_blur(to_tensor(image), torch.tensor([sigma]), 2.0))
    theirs = np.asarray(image.filter(ImageFilter.GaussianBlur(sigma)), dtype=np.float64)
    difference = np.abs(ours - theirs)[6:-6, 6:-6]
    assert difference.max() < most and difference.mean() < mean


@pytest.mark.parametrize("size", [16, 40])
def test_fixed_kernel_of_five_rows(size: int) -> None:
    """PW-Self's kernel (torchvision's `(1, 5)`, width by height): five taps down, none across. Tolerance 1e-5 (of 1)."""
    operation = blur.GaussianBlur(sigma=(2.0, 2.0), kernel=(5, 1))
    pixels = torch.rand(2, 3, size, size)
    taps = np.exp(-0.5 * (np.arange(-2, 3) / 2.0) ** 2)
    taps /= taps.sum()
    padded = np.pad(pixels.double().numpy(), [(0, 0), (0, 0), (2, 2), (0, 0)], mode="reflect")
    expected = sum(taps[k] * padded[:, :, k : k + size] for k in range(5))
    assert np.abs(operation.transform(pixels, torch.zeros(2, 1)).numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_blur_of_cells_smaller_than_the_kernel_keeps_a_constant(side: int) -> None:
    pixels = torch.full((2, 3, side, side), 0.7)
    torch.testing.assert_close(blur.gaussian_blur(pixels, torch.tensor([0.4, 2.0]), 2.0), pixels)
