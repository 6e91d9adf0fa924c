"""Colour jitter and grayscale, as one fused linear map a unit or step by step as torchvision defines them.

The fused form rests on one observation. With luma Y = l . rgb (ITU-R 601) and chroma = rgb - Y, and as long as nothing
clips, all four adjustments act on luma and on chroma separately:

    brightness b:  Y -> b Y,                          chroma -> b chroma
    contrast c:    Y -> c Y + (1 - c) mean(Y),        chroma -> c chroma
    saturation s:  Y -> Y,                            chroma -> s chroma
    hue h:         Y -> Y,                            chroma -> rotated by 2 pi h in the YIQ plane

so their order doesn't matter, any sequence is (gain, mean_gain, chroma as a complex number), and the map in RGB is a
sum of three fixed 3x3 matrices. Clipping between the steps is what the exact form adds.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from glocal.views.photometric.operation import OperationBase, Pixels, Rows, between, per_unit, transform_where

Strength = Annotated[float, Field(ge=0.0)]
Factor = Float[Tensor, " units"]
_Adjustment = Callable[[Pixels, Factor], Pixels]

LUMA = (0.299, 0.587, 0.114)
_IQ = ((0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


@dataclass(frozen=True)
class ColourMap:
    """A colour adjustment of every unit.

    Luma Y becomes `gain` Y + `mean_gain` mean(Y); chroma is multiplied by `real` + i `imaginary` in the IQ plane.
    """

    gain: Factor
    mean_gain: Factor
    real: Factor
    imaginary: Factor

    def then(self, after: ColourMap) -> ColourMap:
        """Compose: this map first, `after` next, with nothing clipped in between."""
        return ColourMap(
            gain=after.gain * self.gain,
            mean_gain=after.gain * self.mean_gain + after.mean_gain * (self.gain + self.mean_gain),
            real=after.real * self.real - after.imaginary * self.imaginary,
            imaginary=after.real * self.imaginary + after.imaginary * self.real,
        )

    def where(self, chosen: Tensor) -> ColourMap:
        """Keep the map for chosen units and the identity for the others."""
        one, zero = torch.ones_like(self.gain), torch.zeros_like(self.gain)
        return ColourMap(
            torch.where(chosen, self.gain, one),
            torch.where(chosen, self.mean_gain, zero),
            torch.where(chosen, self.real, one),
            torch.where(chosen, self.imaginary, zero),
        )

    def matrix(self) -> Float[Tensor, "units 3 3"]:
        """What multiplies RGB; `mean_gain` times the unit's mean luma is added to all three channels."""
        weights = torch.stack([self.gain, self.real, self.imaginary], dim=1)
        return (weights @ _basis(weights.device, weights.dtype).view(3, 9)).view(-1, 3, 3)


def jitter_map(brightness: Factor, contrast: Factor, saturation: Factor, hue: Factor) -> ColourMap:
    """Colour jitter as one map; `hue` in turns (0.5 is the opposite hue), the others factors with 1 for no change."""
    gain = brightness * contrast
    chroma = gain * saturation
    angle = hue * (2 * math.pi)
    return ColourMap(gain, brightness - gain, chroma * angle.cos(), chroma * angle.sin())


def apply_colour_map(pixels: Pixels, colours: ColourMap, out: Pixels | None = None) -> Pixels:
    """Apply one map to every unit and clip once at the end; `out` may be `pixels`.

    >>> half = torch.full((1,), 0.5)
    >>> apply_colour_map(torch.ones(1, 3, 2, 2), jitter_map(half, half * 2, half * 2, half * 0))[0, 0, 0, 0].item()
    0.5
    """
    return apply_colour_matrix(pixels, colours.matrix(), colours.mean_gain, out)


def apply_colour_matrix(
    pixels: Pixels, matrix: Float[Tensor, "units 3 3"], mean_gain: Factor, out: Pixels | None = None
) -> Pixels:
    """Multiply colours by a matrix, add `mean_gain` times the mean luma of the unit and clip; `out` may be `pixels`."""
    flat = pixels.flatten(2)
    luma = _basis(pixels.device, pixels.dtype)[0, 0]
    offset = (flat.mean(2) * luma).sum(1) * mean_gain
    mapped = torch.baddbmm(offset[:, None, None].expand(-1, 3, 1), matrix, flat)
    return torch.clamp(mapped.view_as(pixels), 0.0, 1.0, out=out)


@functools.cache
def _basis(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "3 3 3"]:
    """The matrices of luma, chroma unturned and chroma turned by +90 degrees of hue (red towards yellow)."""
    to_yiq = torch.tensor((LUMA, *_IQ), dtype=torch.float64)
    to_rgb = to_yiq.inverse()
    luma = torch.ones(3, 1, dtype=torch.float64) @ to_yiq[:1]
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    turned = to_rgb[:, 1:] @ turn @ to_yiq[1:]
    stacked = torch.stack([luma, torch.eye(3, dtype=torch.float64) - luma, turned])
    return stacked.to(device=device, dtype=dtype)


def grayscale(pixels: Pixels) -> Float[Tensor, "units 1 height width"]:
    """Luma of ITU-R 601, as PIL's conversion to `L` (which rounds to a level)."""
    red, green, blue = pixels.unbind(1)
    return (red * LUMA[0] + green * LUMA[1] + blue * LUMA[2])[:, None]


def adjust_brightness(pixels: Pixels, factor: Factor) -> Pixels:
    """Blend with black, clipped: `PIL.ImageEnhance.Brightness`."""
    return (pixels * per_unit(factor)).clamp_(0.0, 1.0)


def adjust_contrast(pixels: Pixels, factor: Factor) -> Pixels:
    """Blend with the mean luma of the unit, clipped: `PIL.ImageEnhance.Contrast` without its rounding of the mean."""
    mean = grayscale(pixels).mean((2, 3), keepdim=True)
    return torch.lerp(mean, pixels, per_unit(factor)).clamp_(0.0, 1.0)


def adjust_saturation(pixels: Pixels, factor: Factor) -> Pixels:
    """Blend with the grayscale version, clipped: `PIL.ImageEnhance.Color`."""
    return torch.lerp(grayscale(pixels), pixels, per_unit(factor)).clamp_(0.0, 1.0)


def adjust_hue(pixels: Pixels, turns: Factor) -> Pixels:
    """Turn the hue of HSV by a fraction of the circle, on floats (PIL and torchvision's PIL path use 256 hues)."""
    high, low = pixels.amax(1), pixels.amin(1)
    chroma = high - low
    red, green, blue = pixels.unbind(1)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sextant = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sextant = sextant + turns[:, None, None] * 6
    # Channel n of HSV: value - chroma * clip(min(k, 4 - k), 0, 1) with k = (n + sextant) mod 6 and n = 5, 3, 1.
    position = torch.stack([sextant + 5, sextant + 3, sextant + 1], dim=1).remainder_(6.0)
    share = torch.minimum(position, 4.0 - position).clamp_(0.0, 1.0)
    return (high[:, None] - chroma[:, None] * share).clamp_(0.0, 1.0)


def jitter_exact(
    pixels: Pixels, factors: Float[Tensor, "units 4"], order: Int64[Tensor, "units 4"]
) -> Pixels:
    """Colour jitter as torchvision defines it: four adjustments one after another, each clipped.

    `factors` holds brightness, contrast, saturation and hue; `order` says which of them (0 to 3) comes first, second,
    third and last in a unit.
    """
    steps = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    out = pixels.clone()
    for position in range(4):
        for number, step in enumerate(steps):

            def adjust(units: Pixels, rows: Rows, step: _Adjustment = step, number: int = number) -> Pixels:
                return step(units, factors[rows, number])

            out = transform_where(order[:, position] == number, out, adjust)
    return out


@functools.cache
def _orders(device: torch.device) -> Int64[Tensor, "24 4"]:
    """All orders of the four adjustments."""
    return torch.tensor(list(itertools.permutations(range(4))), device=device)


class ColorJitter(OperationBase):
    """Brightness, contrast, saturation and hue.

    `form="exact"` is torchvision's definition on floats: the four in random order, clipped after each, hue in HSV.
    `form="affine"` (the default) fuses them, and a neighbouring `Grayscale`, into one colour map clipped once, with hue
    as a rotation in YIQ (which keeps luma, as HSV does not). On two photographs and with DINO's strengths it differs
    from the exact form by 5.8 levels of 255 in the mean, nearly all of it hue, at a fifteenth of the time
    (`benchmarks/bench_photometric.py`).
    """

    op: Literal["color_jitter"] = "color_jitter"
    brightness: Strength = 0.4
    """Factor drawn from [max(0, 1 - x), 1 + x]."""
    contrast: Strength = 0.4
    """Factor drawn from [max(0, 1 - x), 1 + x]."""
    saturation: Strength = 0.2
    """Factor drawn from [max(0, 1 - x), 1 + x]."""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    """Turn drawn from [-x, x], as a fraction of the colour circle."""
    form: Literal["affine", "exact"] = "affine"
    """`exact`: torchvision's, step by step; `affine`: one matrix an image, faster and up to 6 levels off."""

    @property
    def draws(self) -> int:
        """Four factors and an order."""
        return 5

    def factors(self, draws: Float[Tensor, "units 5"]) -> Float[Tensor, "units 4"]:
        """Brightness, contrast and saturation factors and the turn of hue."""
        strengths = (self.brightness, self.contrast, self.saturation)
        columns = [between(draws[:, i], max(0.0, 1 - s), 1 + s) for i, s in enumerate(strengths)]
        return torch.stack([*columns, between(draws[:, 3], -self.hue, self.hue)], dim=1)

    @property
    def fuses(self) -> bool:
        """The affine form does."""
        return self.form == "affine"

    def colour_map(self, draws: Float[Tensor, "units 5"]) -> ColourMap:
        """The affine form."""
        return jitter_map(*self.factors(draws).unbind(1))

    def transform(self, pixels: Pixels, draws: Float[Tensor, "units draws"]) -> Pixels:
        """See `apply_colour_map` and `jitter_exact`."""
        if self.form == "affine":
            return apply_colour_map(pixels, self.colour_map(draws))
        order = _orders(pixels.device)[(draws[:, 4] * 24).long()]
        return jitter_exact(pixels, self.factors(draws), order)


class Grayscale(OperationBase):
    """Luma (ITU-R 601) in all three channels."""

    op: Literal["grayscale"] = "grayscale"

    @property
    def fuses(self) -> bool:
        """Luma is a colour map."""
        return True

    def colour_map(self, draws: Float[Tensor, "units draws"]) -> ColourMap:
        """The map that a neighbouring `ColorJitter` fuses with."""
        zero = draws.new_zeros(draws.shape[0])
        return ColourMap(torch.ones_like(zero), zero, zero, zero)

    def transform(self, pixels: Pixels, draws: Float[Tensor, "units draws"]) -> Pixels:
        """See `grayscale`."""
        return grayscale(pixels).expand_as(pixels)
