"""Composite."""
from __future__ import annotations
from typing import Annotated, ClassVar, Literal
from pydantic import Field
from glocal.views.photometric.operation import OperationBase
from glocal.views.photometric.blur import GaussianBlur, Sharpness
from glocal.views.photometric.colour import ColorJitter, Grayscale
from glocal.views.photometric.histogram import AutoContrast, Equalise
from glocal.views.photometric.tone import Invert, Posterise, Solarise, SolariseAdd

PoolOperation = Annotated[
    ColorJitter | Grayscale | GaussianBlur | Solarise | Posterise | Sharpness | AutoContrast | Equalise | Invert
    | SolariseAdd,
    Field(discriminator="op"),
]


class SomeOf(OperationBase):
    """Some of."""

    op: Literal["some_of"] = "some_of"
    pool: tuple[PoolOperation, ...]
    count: int


class RandAugment(OperationBase):
    """x."""

    op: Literal["rand_augment"] = "rand_augment"
    moves_pixels: ClassVar[bool] = True
