"""The settings of a head that projects embeddings onto the unit sphere, which is all that most contrasts need."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from glocal.config import Config
from glocal.models.heads import ProjectionHead


class ProjectionConfig(Config):
    """An MLP without biases onto the unit sphere (SimCLR's projection, with GELU and without batch norm)."""

    hidden: Annotated[int, Field(ge=1)] = 256
    """Width of its hidden layers."""
    layers: Annotated[int, Field(ge=1)] = 3
    """Its linear layers."""
    out_dim: Annotated[int, Field(ge=1)] = 64
    """Width of what it puts out."""
    init: Literal["trunc_normal", "fan_in"] = "fan_in"
    """Of the projection. `trunc_normal`: std 0.02 (DINO, Mugs). `fan_in`: std 1/sqrt(fan in), for small widths and high
    learning rates."""

    def build(self, embed_dim: int) -> ProjectionHead:
        """A new head for embeddings of this size."""
        return ProjectionHead(
            embed_dim, hidden=self.hidden, out_dim=self.out_dim, layers=self.layers, fan_in=self.init == "fan_in",
        )  # fmt: skip
