"""Operations that look at one value at a time: solarise, posterise, invert and add below a threshold."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from glocal.views.photometric.operation import OperationBase, Pixels, per_unit

Level = Annotated[int, Field(ge=0, le=256)]
HALF_LEVEL = 0.5 / 255


def solarise(pixels: Pixels, threshold: Float[Tensor, " units"] | float = 128.0) -> Pixels:
    """Invert every value at or above `threshold` (in levels of 0 to 255), as `PIL.ImageOps.solarize`; exact to 1e-6.

    The comparison is half a level below the threshold, so that a value k/255 falls on the right side however rounded.

    >>> solarise(torch.full((1, 3, 1, 1), 200 / 255)).mul(255).round().flatten().tolist()
    [55.0, 55.0, 55.0]
    """
    limit = per_unit(threshold) / 255 - HALF_LEVEL
    return torch.where(pixels >= limit, 1.0 - pixels, pixels)


def posterise(pixels: Pixels, bits: Float[Tensor, " units"] | int) -> Pixels:
    """Keep the highest `bits` (0 to 8) of every 8-bit value, as `PIL.ImageOps.posterize`; exact to 1e-6.

    Values between two levels are rounded to the nearer one first.

    >>> posterise(torch.full((1, 3, 1, 1), 200 / 255), 2).mul(255).round().flatten().tolist()
    [192.0, 192.0, 192.0]
    """
    step = per_unit(2.0 ** (8 - bits))
    return (pixels * (255 / step) + 0.5 / step).floor_().mul_(step / 255)


def invert(pixels: Pixels) -> Pixels:
    """Return 1 - pixels, as `PIL.ImageOps.invert`."""
    return 1.0 - pixels


def solarise_add(pixels: Pixels, amount: Float[Tensor, " units"] | float, threshold: float = 128.0) -> Pixels:
    """Add `amount` levels to every value below `threshold` levels, clipped at white (AutoAugment's SolarizeAdd)."""
    return torch.where(
        pixels < threshold / 255 - HALF_LEVEL, (pixels + per_unit(amount) / 255).clamp_(max=1.0), pixels
    )


class Solarise(OperationBase):
    """Invert values at or above a threshold."""

    op: Literal["solarise"] = "solarise"
    threshold: Level = 128
    """In levels of 0 to 255."""

    def transform(self, pixels: Pixels, draws: Float[Tensor, "units draws"]) -> Pixels:
        """See `solarise`."""
        if self.threshold == 128:
            return torch.minimum(pixels, 1.0 - pixels)  # the same function, in one comparison less
        return solarise(pixels, float(self.threshold))


class Posterise(OperationBase):
    """Keep the highest bits of every value."""

    op: Literal["posterise"] = "posterise"
    bits: Annotated[int, Field(ge=0, le=8)] = 3
    """Bits that stay, of 8."""

    def transform(self, pixels: Pixels, draws: Float[Tensor, "units draws"]) -> Pixels:
        """See `posterise`."""
        return posterise(pixels, self.bits)


class Invert(OperationBase):
    """Turn the picture into its negative."""

    op: Literal["invert"] = "invert"

    def transform(self, pixels: Pixels, draws: Float[Tensor, "units draws"]) -> Pixels:
        """See `invert`."""
        return invert(pixels)


class SolariseAdd(OperationBase):
    """Add a constant to the dark values."""

    op: Literal["solarise_add"] = "solarise_add"
    amount: Annotated[int, Field(ge=0, le=255)] = 110
    """Levels added."""
    threshold: Level = 128
    """Values below this many levels are changed."""

    def transform(self, pixels: Pixels, draws: Float[Tensor, "units draws"]) -> Pixels:
        """See `solarise_add`."""
        return solarise_add(pixels, float(self.amount), float(self.threshold))
