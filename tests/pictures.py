"""A picture with edges and gradients, and its two forms."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def picture(height: int = 48, width: int = 40, seed: int = 0) -> Image.Image:
    """Return a picture with smooth areas, edges, noise, black and white."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x / width, y / height, (x + y) / (height + width)], -1) * 255
    values = smooth + rng.normal(0, 20, smooth.shape)
    values[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    values[:4, :4], values[-4:, -4:] = 0, 255
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def levels(pixels: Tensor) -> np.ndarray:
    return (pixels[0].permute(1, 2, 0) * 255).numpy()


def largest_difference(pixels: Tensor, image: Image.Image) -> float:
    return float(np.abs(levels(pixels) - np.asarray(image, dtype=np.float64)).max())


def red_corner(picture: Image.Image) -> int:
    """How red the first pixel is."""
    return int(np.asarray(picture)[0, 0, 0])
