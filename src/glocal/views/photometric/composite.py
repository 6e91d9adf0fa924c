"""Operations made of others: some of a pool in random order, and RandAugment."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor

from glocal.views.photometric.blur import GaussianBlur, Sharpness, sharpen
from glocal.views.photometric.colour import (
    ColorJitter,
    Grayscale,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
)
from glocal.views.photometric.histogram import AutoContrast, Equalise, auto_contrast, equalise
from glocal.views.photometric.operation import OperationBase, Pixels, Rows, transform_where
from glocal.views.photometric.tone import (
    Invert,
    Posterise,
    Solarise,
    SolariseAdd,
    invert,
    posterise,
    solarise,
    solarise_add,
)
from glocal.views.photometric.warping import rotation, shear, translation, warp

PoolOperation = Annotated[
    ColorJitter
    | Grayscale
    | GaussianBlur
    | Solarise
    | Posterise
    | Sharpness
    | AutoContrast
    | Equalise
    | Invert
    | SolariseAdd,
    Field(discriminator="op"),
]


class SomeOf(OperationBase):
    """Draw `count` operations of a pool without replacement, in random order, for every unit."""

    op: Literal["some_of"] = "some_of"
    pool: tuple[PoolOperation, ...]
    """The candidates. Their `probability` still applies once drawn; `unit` and `seen_by` are this operation's."""
    count: Annotated[int, Field(ge=1)]
    """How many are drawn."""

    @model_validator(mode="after")
    def _check(self) -> SomeOf:
        if self.count > len(self.pool):
            raise ValueError(
                f"count is {self.count}, but the pool holds {len(self.pool)} operations; lower count"
            )
        for member in self.pool:
            if {"unit", "seen_by"} & member.model_fields_set and (member.unit, member.seen_by) != (
                "image",
                "both",
            ):
                raise ValueError(f"{member.op} in the pool sets unit or seen_by; set them on some_of instead")
        return self

    @property
    def draws(self) -> int:
        """One a member for its rank, then each member's coin and own draws."""
        return len(self.pool) + sum(1 + member.draws for member in self.pool)

    def transform(self, pixels: Pixels, draws: Float[Tensor, "units draws"]) -> Pixels:
        """Walk through the drawn order; at every position each member changes the units that drew it there."""
        order = draws[:, : len(self.pool)].argsort(dim=1)
        pixels = pixels.clone()
        for position in range(self.count):
            start = len(self.pool)
            for number, member in enumerate(self.pool):
                member_draws = draws[:, start + 1 : start + 1 + member.draws]
                chosen = (order[:, position] == number) & (draws[:, start] < member.probability)
                start += 1 + member.draws
                pixels = member.transform_chosen(pixels, member_draws, chosen)
        return pixels


_Amounts = tuple[Tensor, Tensor, Tensor]
Step = Callable[[Pixels, Tensor, Tensor, Tensor], Pixels]
"""pixels, level in [0, 1], sign (-1 or 1), bicubic -> pixels."""


def _enhance(adjust: Callable[[Pixels, Tensor], Pixels]) -> Step:
    return lambda pixels, level, sign, bicubic: adjust(pixels, (1 + 0.9 * sign * level).clamp(min=0.1))


RAND_AUGMENT_STEPS: dict[str, Step] = {
    "auto_contrast": lambda pixels, level, sign, bicubic: auto_contrast(pixels),
    "equalise": lambda pixels, level, sign, bicubic: equalise(pixels),
    "invert": lambda pixels, level, sign, bicubic: invert(pixels),
    "rotate": lambda pixels, level, sign, bicubic: warp(
        pixels, rotation(30.0 * sign * level, pixels.shape[-2], pixels.shape[-1]), bicubic
    ),
    "posterise": lambda pixels, level, sign, bicubic: posterise(pixels, 4 - (level * 4).floor()),
    "solarise": lambda pixels, level, sign, bicubic: solarise(pixels, 256 - (level * 256).floor()),
    "solarise_add": lambda pixels, level, sign, bicubic: solarise_add(pixels, (level * 110).floor()),
    "colour": _enhance(adjust_saturation),
    "contrast": _enhance(adjust_contrast),
    "brightness": _enhance(adjust_brightness),
    "sharpness": _enhance(sharpen),
    "shear_x": lambda pixels, level, sign, bicubic: warp(pixels, shear(0.3 * sign * level, "x"), bicubic),
    "shear_y": lambda pixels, level, sign, bicubic: warp(pixels, shear(0.3 * sign * level, "y"), bicubic),
    "translate_x": lambda pixels, level, sign, bicubic: warp(
        pixels, translation(0.45 * pixels.shape[-1] * sign * level, "x"), bicubic
    ),
    "translate_y": lambda pixels, level, sign, bicubic: warp(
        pixels, translation(0.45 * pixels.shape[-2] * sign * level, "y"), bicubic
    ),
}
"""The 15 operations, at a level from 0 to 1; what has two directions takes either sign ("increasing" variants)."""


class RandAugment(OperationBase):
    """RandAugment (Cubuk et al. 2020) with noisy magnitude and increasing strengths ("rand-m9-mstd0.5-inc1").

    `count` of 15 operations without replacement, each applied with probability `each`; its magnitude is normal around
    `magnitude` and clipped to [0, 10]. Departures: it runs on the crop instead of the whole image, and the bicubic
    kernel is torch's (see `warp`).
    """

    op: Literal["rand_augment"] = "rand_augment"
    count: Annotated[int, Field(ge=1, le=15)] = 2
    """How many of the 15 are drawn."""
    each: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Probability of applying one that was drawn."""
    magnitude: Annotated[float, Field(ge=0.0, le=10.0)] = 9.0
    """Mean strength, of 10."""
    magnitude_std: Annotated[float, Field(ge=0.0)] = 0.5
    """Standard deviation of the strength."""
    moves_pixels: ClassVar[bool] = True

    @property
    def draws(self) -> int:
        """Fifteen ranks; then a coin, two for the magnitude, a sign and a kernel at each position."""
        return len(RAND_AUGMENT_STEPS) + 5 * self.count

    def drawn(self, draws: Float[Tensor, "units draws"]) -> Int64[Tensor, "units count"]:
        """Which operation stands at each position."""
        return draws[:, : len(RAND_AUGMENT_STEPS)].argsort(dim=1)[:, : self.count]

    def levels(self, uniforms: Float[Tensor, "units 5"]) -> Float[Tensor, " units"]:
        """Magnitude as a share of 10, from a normal draw (Box and Muller)."""
        normal = (-2 * torch.log1p(-uniforms[:, 1])).sqrt() * torch.cos(2 * math.pi * uniforms[:, 2])
        return ((self.magnitude + self.magnitude_std * normal) / 10).clamp(0.0, 1.0)

    def transform(self, pixels: Pixels, draws: Float[Tensor, "units draws"]) -> Pixels:
        """Walk through the positions; at each, every operation changes the units that drew it there."""
        which = self.drawn(draws)
        pixels = pixels.clone()
        for position in range(self.count):
            uniforms = draws[:, len(RAND_AUGMENT_STEPS) + 5 * position :][:, :5]
            amounts = (
                self.levels(uniforms),
                torch.where(uniforms[:, 3] < 0.5, -1.0, 1.0),
                uniforms[:, 4] < 0.5,
            )
            for number, step in enumerate(RAND_AUGMENT_STEPS.values()):

                def change(units: Pixels, rows: Rows, step: Step = step, at: _Amounts = amounts) -> Pixels:
                    return step(units, at[0][rows], at[1][rows], at[2][rows])

                chosen = (which[:, position] == number) & (uniforms[:, 0] < self.each)
                pixels = transform_where(chosen, pixels, change)
        return pixels
