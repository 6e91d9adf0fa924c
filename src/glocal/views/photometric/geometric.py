"""Geometric."""
from __future__ import annotations
from typing import ClassVar, Literal
from glocal.views.photometric.operation import OperationBase


class Rotate(OperationBase):
    """x."""

    op: Literal["rotate"] = "rotate"
    moves_pixels: ClassVar[bool] = True


class ShearX(OperationBase):
    """x."""

    op: Literal["shear_x"] = "shear_x"
    moves_pixels: ClassVar[bool] = True


class ShearY(OperationBase):
    """x."""

    op: Literal["shear_y"] = "shear_y"
    moves_pixels: ClassVar[bool] = True


class TranslateX(OperationBase):
    """x."""

    op: Literal["translate_x"] = "translate_x"
    moves_pixels: ClassVar[bool] = True


class TranslateY(OperationBase):
    """x."""

    op: Literal["translate_y"] = "translate_y"
    moves_pixels: ClassVar[bool] = True
