"""Blur and sharpness."""
from __future__ import annotations
from typing import Literal
from glocal.views.photometric.operation import OperationBase


class GaussianBlur(OperationBase):
    """Blur."""

    op: Literal["gaussian_blur"] = "gaussian_blur"
    sigma: tuple[float, float] = (0.1, 2.0)
    kernel: tuple[int, int] | None = None


class Sharpness(OperationBase):
    """Sharpness."""

    op: Literal["sharpness"] = "sharpness"
    factor: float = 2.0
