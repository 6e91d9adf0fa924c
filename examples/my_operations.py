"""A photometric operation of one's own: `{op: examples/my_operations.py:Fog, probability: 0.3}` in a pipeline."""

from __future__ import annotations

from torch import Tensor

from glocal.views.photometric import OperationBase


class Fog(OperationBase):
    """Every unit fades to white by a share of its own, drawn from 0 to `densest`."""

    densest: float = 0.6
    """Largest share of white."""

    @property
    def draws(self) -> int:
        """One uniform number a unit: how dense."""
        return 1

    def transform(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """(units, 3, height, width) in 0 to 1 and (units, 1) uniforms to the fogged pixels."""
        share = self.densest * draws[:, 0, None, None, None]
        return pixels * (1 - share) + share
