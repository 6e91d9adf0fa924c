"""Gaussian blur and sharpness.

Two routes give the same numbers. A view is filtered by a sum of shifted copies, views with kernels of one length
together. A cell of at most 32 pixels is multiplied by a banded matrix of its own, into which the reflection at the
border is built, so that no cell is ever padded and no neighbour is ever read.
"""

from __future__ import annotations

import functools
import math
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from glocal.views.photometric.operation import (
    PIECE_BYTES,
    OperationBase,
    Pixels,
    between,
    per_unit,
    write_rows,
)

SMALL = 32
"""Longest side for which a matrix beats a convolution."""
REACH = 2.5
"""Kernels end at this many standard deviations, where 1 % of the weight is left (PIL's end at about 2.3)."""


def gaussian_taps(
    sigma: Float[Tensor, " units"], radius: int, cut: bool = True
) -> Float[Tensor, "units taps"]:
    """Weights at distance 0 to `radius`, normalised so that weight 0 plus twice the others is 1.

    With `cut`, weights further than ceil(2.5 sigma) are 0, so a larger `radius` changes nothing.
    """
    distance = torch.arange(radius + 1, device=sigma.device, dtype=sigma.dtype)
    weight = torch.exp(-0.5 * (distance / sigma[:, None]).square())
    if cut:
        weight = weight * (distance <= (sigma * REACH).ceil()[:, None])
    return weight / (2 * weight.sum(1, keepdim=True) - weight[:, :1])


def gaussian_blur(pixels: Pixels, sigma: Float[Tensor, " units"], largest: float) -> Pixels:
    """Blur every unit with its own standard deviation, reflecting at the border.

    Departs from `PIL.ImageFilter.GaussianBlur(sigma)` by what three box filters depart from a Gaussian. On two
    photographs, away from the border (PIL repeats the last pixel instead of reflecting), in levels of 255, largest and
    mean difference: 21 and 2.1 at sigma 0.3, 17 and 2.0 at 0.4, 4 and 0.7 at 0.5, 9 and 1.0 at 0.8, 4 and 0.6 from 1 to
    2. `largest` bounds sigma from above; it only sizes kernels.

    >>> gaussian_blur(torch.ones(2, 3, 8, 8), torch.tensor([0.5, 2.0]), 2.0).std().item() < 1e-6
    True
    """
    height, width = pixels.shape[-2:]
    radius = max(1, math.ceil(largest * REACH))
    if max(height, width) <= SMALL:
        taps = gaussian_taps(sigma, radius)
        return filter_cells(pixels, taps, taps)
    if pixels.device.type == "cpu":
        return _blur_by_radius(pixels.clone(), sigma, torch.ones_like(sigma, dtype=torch.bool))
    taps = gaussian_taps(sigma, min(radius, height - 1, width - 1))
    return filter_views(pixels, taps, taps)


def _blur_by_radius(pixels: Pixels, sigma: Float[Tensor, " units"], chosen: Bool[Tensor, " units"]) -> Pixels:
    """Blur the chosen units in place, those with kernels of one length together.

    Short kernels for small sigma halve the work; a piece at a time keeps every pass over the pixels in the cache.
    """
    height, width = pixels.shape[-2:]
    piece = max(1, PIECE_BYTES // (12 * height * width))
    radii = (sigma * REACH).ceil().clamp(1, min(height, width) - 1)
    for radius in sorted({int(radius) for radius in radii[chosen].tolist()}):
        for rows in torch.split(((radii == radius) & chosen).nonzero()[:, 0], piece):
            taps = gaussian_taps(sigma[rows], radius)
            write_rows(pixels, rows, filter_views(pixels.index_select(0, rows), taps, taps))
    return pixels


def filter_views(
    pixels: Pixels,
    vertical: Float[Tensor, "units taps"] | None,
    horizontal: Float[Tensor, "units other_taps"] | None,
) -> Pixels:
    """Filter every unit along both axes with its own symmetric kernels, given by their taps from the middle outwards.

    A sum of shifted pictures: its passes run in the cache, whereas depthwise convolution on a CPU rearranges memory
    twice and is 4x slower unless units come in multiples of sixteen channels.
    """
    down = 0 if vertical is None else vertical.shape[1] - 1
    across = 0 if horizontal is None else horizontal.shape[1] - 1
    out = functional.pad(pixels, (across, across, down, down), mode="reflect")
    for taps, axis in ((vertical, 2), (horizontal, 3)):
        if taps is not None:
            radius = taps.shape[1] - 1
            length = out.shape[axis] - 2 * radius
            weight = taps[:, :, None, None, None]
            summed = out.narrow(axis, radius, length) * weight[:, 0]
            for distance in range(1, radius + 1):
                summed.addcmul_(out.narrow(axis, radius - distance, length), weight[:, distance])
                summed.addcmul_(out.narrow(axis, radius + distance, length), weight[:, distance])
            out = summed
    return out


def filter_cells(
    cells: Pixels,
    vertical: Float[Tensor, "units taps"] | None,
    horizontal: Float[Tensor, "units other_taps"] | None,
) -> Pixels:
    """Filter small units by banded matrices with the reflection built in."""
    units, _, height, width = cells.shape
    if horizontal is not None:
        across = _band(
            horizontal, width
        )  # symmetric taps: the matrix acts on a row from the right once transposed
        cells = torch.bmm(cells.reshape(units, 3 * height, width), across.transpose(1, 2)).view(
            units, 3, height, width
        )
    if vertical is not None:
        cells = torch.matmul(_band(vertical, height)[:, None], cells)
    return cells


def _band(taps: Float[Tensor, "units taps"], side: int) -> Float[Tensor, "units side side"]:
    """Matrices that filter a line of `side` pixels; beyond its ends the line continues as in a mirror."""
    return (taps @ _mirror(taps.shape[1] - 1, side, taps.device)).view(-1, side, side)


@functools.cache
def _mirror(radius: int, side: int, device: torch.device) -> Float[Tensor, "taps side_times_side"]:
    """How often output i reads input j at distance k, as (k, i * side + j)."""
    offset = torch.arange(-radius, radius + 1)
    read = torch.arange(side)[None, :] + offset[:, None]
    period = max(1, 2 * (side - 1))
    read = (side - 1) - ((read % period) - (side - 1)).abs()
    counts = torch.zeros(radius + 1, side, side)
    distance = offset.abs()[:, None].expand_as(read)
    output = torch.arange(side)[None, :].expand_as(read)
    counts.index_put_((distance, output, read), torch.ones(()), accumulate=True)
    return counts.view(radius + 1, -1).to(device)


@functools.cache
def _row_sums(
    side: int, device: torch.device
) -> tuple[Float[Tensor, "side side"], Float[Tensor, "side side"]]:
    """Matrices giving the sum over three neighbours in a row, and that sum less 9 times the middle; 0 at both ends."""
    box = torch.ones(side, side).tril(1).triu(-1)
    box[:, 0] = box[:, -1] = 0
    inner = torch.ones(side)
    inner[0] = inner[-1] = 0
    return box.to(device), (box - 9 * inner.diag()).to(device)


def sharpen(pixels: Pixels, factor: Float[Tensor, " units"] | float) -> Pixels:
    """Blend with the smoothed picture, as `PIL.ImageEnhance.Sharpness`: 0 smooths, 1 leaves, 2 sharpens; clipped.

    The smoothing kernel is (1 1 1; 1 5 1; 1 1 1) / 13 and leaves the outermost pixels alone. Equal to PIL to one level,
    since PIL rounds the smoothed picture first.
    """
    if min(pixels.shape[-2:]) < 3:
        return pixels
    out = pixels.clone()
    inner = out[..., 1:-1, :]
    strength = per_unit((1.0 - factor) / 13.0)
    width = pixels.shape[-1]
    if width <= SMALL:
        box, centred_box = _row_sums(width, pixels.device)
        sums, centred = pixels.matmul(box), pixels.matmul(centred_box)
        change = (sums[..., :-2, :] + sums[..., 2:, :]).add_(centred[..., 1:-1, :])
    else:
        inner = inner[..., 1:-1]
        column = pixels[..., :-2, :] + pixels[..., 1:-1, :]
        column += pixels[..., 2:, :]
        change = column[..., :-2] + column[..., 1:-1]
        change += column[..., 2:]
        change.sub_(inner, alpha=9)
    if isinstance(strength, Tensor):
        inner.addcmul_(change, strength)
    else:
        inner.add_(change, alpha=strength)
    return out.clamp_(0.0, 1.0)


class GaussianBlur(OperationBase):
    """Blur with a standard deviation drawn uniformly."""

    op: Literal["gaussian_blur"] = "gaussian_blur"
    sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation, in pixels of the view."""
    kernel: tuple[int, int] | None = None
    """Odd taps (rows, columns) of a fixed kernel, (5, 1) in PW-Self's code; none: as long as sigma asks."""

    @model_validator(mode="after")
    def _check(self) -> GaussianBlur:
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"sigma is {self.sigma}; it must rise from above 0")
        if self.kernel is not None and (min(self.kernel) < 1 or any(taps % 2 == 0 for taps in self.kernel)):
            raise ValueError(f"kernel is {self.kernel}; both numbers of taps must be odd, for example (5, 1)")
        return self

    @property
    def draws(self) -> int:
        """One: sigma."""
        return 1

    def transform(self, pixels: Pixels, draws: Float[Tensor, "units draws"]) -> Pixels:
        """See `gaussian_blur`; a fixed kernel is cut where it stands, whatever sigma is (as torchvision does)."""
        sigma = between(draws[:, 0], *self.sigma)
        if self.kernel is None:
            return gaussian_blur(pixels, sigma, self.sigma[1])
        radii = [(taps - 1) // 2 for taps in self.kernel]
        vertical, horizontal = (
            gaussian_taps(sigma, radius, cut=False) if radius else None for radius in radii
        )
        if max(pixels.shape[-2:]) <= SMALL:
            return filter_cells(pixels, vertical, horizontal)
        return filter_views(pixels, vertical, horizontal)

    def transform_chosen(
        self, pixels: Pixels, draws: Float[Tensor, "units draws"], chosen: Bool[Tensor, " units"]
    ) -> Pixels:
        """On a CPU, go straight from the views to their groups by kernel length."""
        if self.kernel is None and pixels.device.type == "cpu" and max(pixels.shape[-2:]) > SMALL:
            return _blur_by_radius(pixels, between(draws[:, 0], *self.sigma), chosen)
        return super().transform_chosen(pixels, draws, chosen)


class Sharpness(OperationBase):
    """Sharpen or smooth by a fixed factor."""

    op: Literal["sharpness"] = "sharpness"
    factor: Annotated[float, Field(ge=0.0)] = 2.0
    """0 smooths, 1 leaves the picture alone, 2 sharpens."""

    def transform(self, pixels: Pixels, draws: Float[Tensor, "units draws"]) -> Pixels:
        """See `sharpen`."""
        return sharpen(pixels, self.factor)
