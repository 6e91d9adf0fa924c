"""Flat pairs of tokens with a weight: what every term sums over."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor


class Pairs(NamedTuple):
    """Which student token learns from which teacher token, and with what weight. Weights need not sum to one."""

    student: Int64[Tensor, " pairs"]
    teacher: Int64[Tensor, " pairs"]
    weight: Float[Tensor, " pairs"]

    def to(self, device: torch.device) -> Pairs:
        """The pairs on the device of the features, copied without waiting for it."""
        return Pairs(*(t.to(device, non_blocking=True) for t in self))
