"""Operations that look at each channel's histogram: AutoContrast and Equalise."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from glocal.views.photometric.operation import OperationBase, Pixels


def auto_contrast(pixels: Pixels) -> Pixels:
    """Stretch every channel to the full range, as `PIL.ImageOps.autocontrast`.

    Equal to one level, since PIL truncates. A channel of one value stays as it is.
    """
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    spread = high - low
    flat = spread <= 0
    scale = torch.where(flat, 1.0, 1.0 / torch.where(flat, 1.0, spread))
    return torch.addcmul(-torch.where(flat, 0.0, low) * scale, pixels, scale).clamp_(0.0, 1.0)


def equalise(pixels: Pixels) -> Pixels:
    """Flatten every channel's histogram, as `PIL.ImageOps.equalize`; exact on 8-bit values.

    Other values are rounded to the nearest level first, and the result lies on levels.
    """
    units, channels = pixels.shape[:2]
    levels = (pixels * 255).round_().long().view(units, channels, -1)
    ones = torch.ones((), dtype=torch.int64, device=pixels.device).expand_as(levels)
    counts = torch.zeros(units, channels, 256, dtype=torch.int64, device=pixels.device).scatter_add_(
        2, levels, ones
    )
    # One step is a 255th of the pixels that aren't at the highest level in use; 0 means too few pixels to change.
    numbers = torch.arange(256, device=pixels.device).expand_as(counts)
    highest = torch.where(counts > 0, numbers, 0).amax(2, keepdim=True)
    step = (levels.shape[2] - counts.gather(2, highest)) // 255
    before = counts.cumsum(2) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step > 0, table, numbers)
    return (table.gather(2, levels).to(pixels.dtype) / 255).view_as(pixels)


class AutoContrast(OperationBase):
    """Stretch every channel to the full range."""

    op: Literal["auto_contrast"] = "auto_contrast"

    def transform(self, pixels: Pixels, draws: Float[Tensor, "units draws"]) -> Pixels:
        """See `auto_contrast`."""
        return auto_contrast(pixels)


class Equalise(OperationBase):
    """Flatten every channel's histogram."""

    op: Literal["equalise"] = "equalise"

    def transform(self, pixels: Pixels, draws: Float[Tensor, "units draws"]) -> Pixels:
        """See `equalise`."""
        return equalise(pixels)
