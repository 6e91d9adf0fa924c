"""Images with masks in memory, and encoders whose patches are simple functions of the pixels."""

from __future__ import annotations

import numpy as np
import torch
from evaluation_fakes import MemorySource
from torch import nn

from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.models.features import Features

QUIET = Work(progress=False)
COLOURS = np.array([[230, 40, 40], [40, 230, 40], [40, 40, 230], [220, 220, 40]], np.uint8)


class MaskSource(MemorySource):
    """Images and masks in memory."""

    has_masks = True

    def __init__(self, pixels: np.ndarray, masks: list[np.ndarray], **settings: object) -> None:
        super().__init__(pixels, **settings)  # type: ignore[arg-type]
        self.masks = masks

    def read_mask(self, index: int) -> np.ndarray:
        return self.masks[index]


def blocks(
    images: int, classes: int = 3, seed: int = 0, cells: int = 4, cell: int = 8, **settings: object
) -> MaskSource:
    """Images of `cells` x `cells` flat cells, each of one class' colour with noise; masks say which."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, (images, cells, cells))
    masks = labels.repeat(cell, 1).repeat(cell, 2).astype(np.uint8)
    pixels = np.clip(COLOURS[masks] + generator.normal(0, 15, (*masks.shape, 3)), 0, 255).astype(np.uint8)
    return MaskSource(pixels, list(masks), **settings)


class PatchColours(nn.Module):
    """Patch features are mean colours under a fixed random projection; no class token of use."""

    def __init__(self, patch: int, dim: int, patches: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.patch, self.patches = patch, patches
        self.projection: torch.Tensor
        self.register_buffer("projection", torch.randn(3, dim, generator=generator))

    def forward(self, pixels: torch.Tensor) -> Features:
        pooled = nn.functional.avg_pool2d(pixels, self.patch)
        grid = pooled.shape[2], pooled.shape[3]
        tokens = pooled.flatten(2).transpose(1, 2) @ self.projection
        kept = tokens if self.patches else tokens[:, :0]
        return Features(tokens.mean(1), kept, (int(grid[0]), int(grid[1])), tokens)

    def intermediate(self, pixels: torch.Tensor, layers: list[int]) -> list[Features]:
        return [self(pixels) for _ in layers]

    def last_keys(self, pixels: torch.Tensor) -> torch.Tensor:
        features: Features = self(pixels)
        return features.patches


def colour_encoder(patch: int = 8, dim: int = 8, size: int = 32, patches: bool = True) -> Encoder:
    """An encoder that knows colours only."""
    return Encoder("colours", PatchColours(patch, dim, patches), dim, patch, size)
