"""Random erasing with noise."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import model_validator
from torch import Tensor

from glocal.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from glocal.views.photometric.operation import OperationBase, Pixels, Probability, between
from glocal.views.randomness import fold_in, uniforms

ATTEMPTS = 10
Noise = Literal["valid", "unit"]


def draw_boxes(
    draws: Float[Tensor, "units attempts 4"],
    area: tuple[float, float],
    aspect: tuple[float, float],
    height: int,
    width: int,
) -> Int64[Tensor, "units 4"]:
    """Draw one box (top, left, height, width) a unit: the first attempt that is smaller than the picture on both sides.

    Area is uniform, height over width log-uniform. When no attempt fits, the box is empty.
    """
    size = between(draws[..., 0], *area) * (height * width)
    ratio = between(draws[..., 1], math.log(aspect[0]), math.log(aspect[1])).exp()
    tall, wide = (size * ratio).sqrt().round().long(), (size / ratio).sqrt().round().long()
    fits = (tall < height) & (wide < width)
    first = fits.int().argmax(1, keepdim=True)
    tall, wide = (torch.where(fits, side, 0).gather(1, first)[:, 0] for side in (tall, wide))
    start = draws.gather(1, first[:, :, None].expand(-1, 1, 4))[:, 0]
    top = (start[:, 2] * (height - tall + 1)).long()
    left = (start[:, 3] * (width - wide + 1)).long()
    return torch.stack([top, left, tall, wide], dim=1)


def inside_boxes(
    boxes: Int64[Tensor, "units 4"], height: int, width: int
) -> Bool[Tensor, "units height width"]:
    """Mark the pixels of each unit's box."""
    top, left, tall, wide = boxes[:, :, None].unbind(1)
    y, x = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    return ((y >= top) & (y < top + tall))[:, :, None] & ((x >= left) & (x < left + wide))[:, None, :]


def erase(
    pixels: Pixels, boxes: Int64[Tensor, "units 4"], seeds: Int64[Tensor, " units"], noise: Noise = "valid"
) -> Pixels:
    """Fill each unit's box with Gaussian noise (see `RandomErasing`), a function of the unit's seed and the place."""
    height, width = pixels.shape[-2:]
    inside = inside_boxes(boxes, height, width)
    if pixels.device.type == "cpu":
        unit, place = inside.flatten(1).nonzero().unbind(1)
        out = pixels.clone()
        out.flatten(2)[unit, :, place] = _noise(fold_in(seeds[unit], place), noise)
        return out
    place = torch.arange(height * width, device=pixels.device)
    filling = _noise(fold_in(seeds[:, None], place).flatten(), noise).view(-1, height, width, 3)
    return torch.where(inside[:, None], filling.permute(0, 3, 1, 2), pixels)


def _noise(seeds: Int64[Tensor, " values"], noise: Noise) -> Float[Tensor, "values 3"]:
    """Normal values by the inverse of the error function."""
    normal = torch.erfinv(uniforms(seeds, 3).mul_(2).sub_(1 - 2.0**-24)).mul_(math.sqrt(2))
    if noise == "unit":
        return normal
    mean, std = normal.new_tensor(IMAGENET_MEAN), normal.new_tensor(IMAGENET_STD)
    return torch.addcmul(mean, normal, std).clamp_(0.0, 1.0)


class RandomErasing(OperationBase):
    """Replace one rectangle by per-pixel noise (Zhong et al. 2020, pixel mode, one box)."""

    op: Literal["random_erasing"] = "random_erasing"
    probability: Probability = 0.25
    """Of erasing a rectangle."""
    area: tuple[float, float] = (0.02, 1 / 3)
    """Smallest and largest share of the view."""
    aspect: tuple[float, float] = (0.3, 3.3)
    """Smallest and largest height over width."""
    noise: Noise = "valid"
    """`valid`: of ImageNet's mean and deviation, clipped to colours that exist; after normalisation its deviation is
    0.97. `unit`: standard normal on the scale where white is 1, beyond black and white; after normalisation its
    deviation is 4.4 (Mugs' published runs, whose loader erases before it normalises)."""

    @model_validator(mode="after")
    def _check(self) -> RandomErasing:
        for name, (low, high) in (("area", self.area), ("aspect", self.aspect)):
            if not 0 < low <= high or (name == "area" and high > 1):
                limit = " to at most 1" if name == "area" else ""
                raise ValueError(f"{name} is ({low}, {high}); it must rise from above 0{limit}")
        return self

    @property
    def draws(self) -> int:
        """Four an attempt at a box, and two halves of a noise seed."""
        return 4 * ATTEMPTS + 2

    def transform(self, pixels: Pixels, draws: Float[Tensor, "units draws"]) -> Pixels:
        """See `draw_boxes` and `erase`."""
        boxes = draw_boxes(draws[:, :-2].reshape(-1, ATTEMPTS, 4), self.area, self.aspect, *pixels.shape[-2:])
        halves = (draws[:, -2:] * 2**24).long()
        return erase(pixels, boxes, (halves[:, 0] << 24) + halves[:, 1], self.noise)
