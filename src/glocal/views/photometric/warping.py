"""Operations that move pixels: rotate, shear, translate. They break geometric patch matching and say so."""

from __future__ import annotations

import functools
import math
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from glocal.views.photometric.operation import OperationBase, Pixels, between

FILL = (124 / 255, 116 / 255, 104 / 255)
"""Colour of what comes in from outside: ImageNet's mean."""

Strength = Annotated[float, Field(ge=0.0)]


def warp(pixels: Pixels, inverse: Float[Tensor, "units 2 3"], bicubic: Bool[Tensor, " units"]) -> Pixels:
    """Read every output pixel from `inverse` @ (x, y, 1), in pixel coordinates whose pixel centres lie at halves.

    As `PIL.Image.transform(AFFINE)`: outside the picture comes `FILL`, at its border the last pixel continues. Bilinear
    equals PIL to one level. Departure: the bicubic kernel has a = -0.75 (torch's) where PIL has -0.5.
    """
    height, width = pixels.shape[-2:]
    x = torch.arange(width, device=pixels.device, dtype=pixels.dtype) + 0.5
    y = torch.arange(height, device=pixels.device, dtype=pixels.dtype) + 0.5
    row = (
        inverse[:, :, 0, None, None] * x
        + inverse[:, :, 1, None, None] * y[:, None]
        + inverse[:, :, 2, None, None]
    )
    source_x, source_y = row.unbind(1)
    grid = torch.stack([source_x * (2 / width) - 1, source_y * (2 / height) - 1], dim=-1)
    linear = _sample(pixels, grid, "bilinear")
    smooth = (
        _sample(pixels, grid, "bicubic") if pixels.device.type != "cpu" or bool(bicubic.any()) else linear
    )
    out = torch.where(bicubic[:, None, None, None], smooth.clamp(0.0, 1.0), linear)
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    return torch.where(inside[:, None], out, _fill(pixels.device))


@functools.cache
def _fill(device: torch.device) -> Float[Tensor, "3 1 1"]:
    return torch.tensor(FILL, device=device)[:, None, None]


def _sample(pixels: Pixels, grid: Tensor, mode: str) -> Pixels:
    return functional.grid_sample(pixels, grid, mode=mode, padding_mode="border", align_corners=False)


def rotation(degrees: Float[Tensor, " units"], height: int, width: int) -> Float[Tensor, "units 2 3"]:
    """Inverse map of a rotation about the middle, counter-clockwise on the screen."""
    angle = degrees * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    middle_x, middle_y = width / 2, height / 2
    return torch.stack(
        [
            torch.stack([cos, -sin, middle_x - cos * middle_x + sin * middle_y], 1),
            torch.stack([sin, cos, middle_y - sin * middle_x - cos * middle_y], 1),
        ],
        dim=1,
    )


def shear(amount: Float[Tensor, " units"], axis: Literal["x", "y"]) -> Float[Tensor, "units 2 3"]:
    """Inverse map of a shear about the top-left corner: source x = x + amount * y, or the same for y."""
    matrix = _identity(amount)
    index = (0, 1) if axis == "x" else (1, 0)
    matrix[:, index[0], index[1]] = amount
    return matrix


def translation(pixels: Float[Tensor, " units"], axis: Literal["x", "y"]) -> Float[Tensor, "units 2 3"]:
    """Inverse map of a translation: source x = x + pixels, or the same for y."""
    matrix = _identity(pixels)
    matrix[:, 0 if axis == "x" else 1, 2] = pixels
    return matrix


def _identity(like: Tensor) -> Float[Tensor, "units 2 3"]:
    return torch.eye(2, 3, dtype=like.dtype, device=like.device).repeat(like.shape[0], 1, 1)


class GeometricOperation(OperationBase):
    """An affine map whose amount is drawn from [-limit, limit], resampled bilinearly or bicubically by a coin."""

    moves_pixels: ClassVar[bool] = True

    @property
    def draws(self) -> int:
        """The amount and the coin for the kernel."""
        return 2

    def inverse(self, amount: Float[Tensor, " units"], height: int, width: int) -> Float[Tensor, "units 2 3"]:
        """Where each output pixel is read, for an amount in [-1, 1] of the limit."""
        raise NotImplementedError(f"{type(self).__name__} has no inverse map")

    def transform(self, pixels: Pixels, draws: Float[Tensor, "units draws"]) -> Pixels:
        """See `warp`."""
        amount = between(draws[:, 0], -1.0, 1.0)
        return warp(pixels, self.inverse(amount, *pixels.shape[-2:]), draws[:, 1] < 0.5)


class Rotate(GeometricOperation):
    """Rotate about the middle."""

    op: Literal["rotate"] = "rotate"
    degrees: Strength = 30.0
    """Largest angle, to either side."""

    def inverse(self, amount: Float[Tensor, " units"], height: int, width: int) -> Float[Tensor, "units 2 3"]:
        """See `rotation`."""
        return rotation(amount * self.degrees, height, width)


class ShearX(GeometricOperation):
    """Slant sideways."""

    op: Literal["shear_x"] = "shear_x"
    limit: Strength = 0.3
    """Largest slope, to either side."""

    def inverse(self, amount: Float[Tensor, " units"], height: int, width: int) -> Float[Tensor, "units 2 3"]:
        """See `shear`."""
        return shear(amount * self.limit, "x")


class ShearY(GeometricOperation):
    """Slant up or down."""

    op: Literal["shear_y"] = "shear_y"
    limit: Strength = 0.3
    """Largest slope, to either side."""

    def inverse(self, amount: Float[Tensor, " units"], height: int, width: int) -> Float[Tensor, "units 2 3"]:
        """See `shear`."""
        return shear(amount * self.limit, "y")


class TranslateX(GeometricOperation):
    """Move sideways by a share of the width."""

    op: Literal["translate_x"] = "translate_x"
    limit: Strength = 0.45
    """Largest shift as a share of the width, to either side."""

    def inverse(self, amount: Float[Tensor, " units"], height: int, width: int) -> Float[Tensor, "units 2 3"]:
        """See `translation`."""
        return translation(amount * (self.limit * width), "x")


class TranslateY(GeometricOperation):
    """Move up or down by a share of the height."""

    op: Literal["translate_y"] = "translate_y"
    limit: Strength = 0.45
    """Largest shift as a share of the height, to either side."""

    def inverse(self, amount: Float[Tensor, " units"], height: int, width: int) -> Float[Tensor, "units 2 3"]:
        """See `translation`."""
        return translation(amount * (self.limit * height), "y")
