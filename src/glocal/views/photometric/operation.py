"""What every photometric operation declares, and how it is applied to some of the units only.

A unit is what gets its own parameters: a whole view, or one cell of the token grid. Operations never know which: they
see (units, 3, height, width) and one row of uniforms a unit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from glocal.config import Config

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Pixels = Float[Tensor, "units 3 height width"]
Rows = Tensor | slice
PIECE_BYTES = 4 << 20
"""Float bytes of the views that a CPU core works on at a time: they stay in the cache, and few calls are made."""


class OperationBase(Config):
    """One step of a photometric pipeline. Frozen settings plus `transform`, a pure function of pixels and uniforms."""

    probability: Probability = 1.0
    """Probability that the operation applies to a unit."""
    unit: Literal["image", "patch"] = "image"
    """What draws its own parameters: the whole view, or every cell of the token grid (PW-Self)."""
    seen_by: Literal["both", "student"] = "both"
    """`student`: the teacher sees the view without this operation."""

    moves_pixels: ClassVar[bool] = False
    """True where content changes place, so that geometric patch matching no longer holds."""

    @property
    def name(self) -> str:
        """Its `op`, by which a pipeline names it."""
        return str(type(self).model_fields["op"].default)

    @property
    def fuses(self) -> bool:
        """True for a colour map, which becomes one with its neighbours."""
        return False

    @property
    def draws(self) -> int:
        """How many uniforms `transform` reads for each unit."""
        return 0

    def transform(self, pixels: Pixels, draws: Float[Tensor, "units draws"]) -> Pixels:
        """Apply to every unit with the parameters that its row of uniforms in [0, 1) gives. Leaves `pixels` alone."""
        raise NotImplementedError(f"{type(self).__name__} has no transform")

    def transform_chosen(
        self, pixels: Pixels, draws: Float[Tensor, "units draws"], chosen: Bool[Tensor, " units"]
    ) -> Pixels:
        """Apply to the chosen units; the others pass unchanged. May overwrite `pixels`."""
        return transform_where(chosen, pixels, lambda units, rows: self.transform(units, draws[rows]))


def transform_where(
    chosen: Bool[Tensor, " units"], pixels: Pixels, transform: Callable[[Pixels, Rows], Pixels]
) -> Pixels:
    """Apply `transform(pixels[rows], rows)` to the chosen units; the others pass unchanged. May overwrite `pixels`.

    On a CPU only the chosen units are computed. Elsewhere all are and a mask selects, because a subset of unknown size
    would make the host wait for the device.
    """
    if pixels.device.type != "cpu":
        return torch.where(chosen[:, None, None, None], transform(pixels, slice(None)), pixels)
    rows = chosen.nonzero()[:, 0]
    if len(rows) == 0:
        return pixels
    if len(rows) == len(pixels):
        return transform(pixels, slice(None))
    return write_rows(pixels, rows, transform(pixels.index_select(0, rows), rows))


def write_rows(
    pixels: Pixels, rows: Int64[Tensor, " chosen"], values: Float[Tensor, "chosen 3 height width"]
) -> Pixels:
    """Write units into `pixels` on a CPU.

    torch's scatter copies one element at a time; seen as elements of 16 bytes the same rows move 3x faster.
    """
    row = pixels[0].numel()
    if pixels.is_contiguous() and row % 4 == 0 and pixels.storage_offset() % 4 == 0:
        wide = values.reshape(-1, row).contiguous().view(torch.complex128)
        pixels.view(-1, row).view(torch.complex128).index_copy_(0, rows, wide)
        return pixels
    return pixels.index_copy_(0, rows, values)


def between(uniform: Tensor, low: float, high: float) -> Tensor:
    """Stretch uniforms in [0, 1) to [low, high)."""
    return uniform * (high - low) + low


def per_unit(parameter: Float[Tensor, " units"] | float) -> Tensor | float:
    """Make one number a unit broadcast against (units, 3, height, width); a plain number stays as it is."""
    return parameter[:, None, None, None] if isinstance(parameter, Tensor) else parameter
