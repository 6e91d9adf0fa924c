"""Photometric operations on batches of views, each drawn per image or per patch from stateless random numbers."""

from __future__ import annotations

from glocal.views.photometric.operation import OperationBase
from glocal.views.photometric.pipeline import apply_pipeline
from glocal.views.photometric.union import Operation

__all__ = ["Operation", "OperationBase", "apply_pipeline"]
