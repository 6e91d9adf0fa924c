"""AutoContrast, Equalise."""
from __future__ import annotations
from typing import Literal
from glocal.views.photometric.operation import OperationBase


class AutoContrast(OperationBase):
    """AutoContrast."""

    op: Literal["auto_contrast"] = "auto_contrast"


class Equalise(OperationBase):
    """Equalise."""

    op: Literal["equalise"] = "equalise"
