"""Colour jitter and grayscale."""
from __future__ import annotations
from typing import Annotated, Literal
from pydantic import Field
from glocal.views.photometric.operation import OperationBase

Strength = Annotated[float, Field(ge=0.0)]


class ColorJitter(OperationBase):
    """Brightness, contrast, saturation and hue."""

    op: Literal["color_jitter"] = "color_jitter"
    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.2
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    form: Literal["affine", "exact"] = "affine"


class Grayscale(OperationBase):
    """Grayscale."""

    op: Literal["grayscale"] = "grayscale"
