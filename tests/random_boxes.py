"""Random crops, as tests of matching draw them."""

from __future__ import annotations

import numpy as np
import torch

Box = tuple[int, int, int, int]


def draw_box(generator: np.random.Generator, height: int, width: int, area: tuple[float, float]) -> Box:
    """A random crop of a share of the source's area, with DINO's aspect ratios, in whole pixels."""
    share = generator.uniform(*area) * height * width
    ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
    h = int(np.clip(round(np.sqrt(share / ratio)), 2, height))
    w = int(np.clip(round(np.sqrt(share * ratio)), 2, width))
    return int(generator.integers(0, height - h + 1)), int(generator.integers(0, width - w + 1)), h, w


def as_tensors(boxes: list[Box], flips: list[bool]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(boxes).view(-1, 4), torch.tensor(flips, dtype=torch.bool)
