"""Erasing."""
from __future__ import annotations
from typing import Literal
from glocal.views.photometric.operation import OperationBase


class RandomErasing(OperationBase):
    """x."""

    op: Literal["random_erasing"] = "random_erasing"
    probability: float = 0.25
