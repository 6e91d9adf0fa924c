"""Embeddings in fewer bytes: float32 as computed, float16, or int8 with a scale a row; and what that cost, measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import NDArray

from glocal.errors import DataError

Stored = Literal["float32", "float16", "int8"]
"""float16: half the bytes; int8: a quarter, each row (an image's embedding, or one patch's) by its largest value."""

_LARGEST = 127


class Coded(NamedTuple):
    """Rows as they are stored; `scale` for int8 only."""

    values: Shaped[np.ndarray, "*rows dim"]
    scale: Float[np.ndarray, "*rows"] | None = None

    def decoded(self) -> Float[np.ndarray, "*rows dim"]:
        """The rows in float32."""
        values: NDArray[np.float32] = self.values.astype(np.float32)
        return values if self.scale is None else values * self.scale[..., None]


def coded(rows: Float[np.ndarray, "*rows dim"], stored: Stored) -> Coded:
    """Bring rows to the numbers they are stored in.

    Raises:
        DataError: when a value exceeds what float16 holds.

    >>> coded(np.array([[1.0, -0.5]], np.float32), "int8").values.tolist()
    [[127, -64]]
    """
    if stored == "float32":
        return Coded(rows)
    if stored == "float16":
        if np.abs(rows).max(initial=0.0) > np.finfo(np.float16).max:
            raise DataError(
                f"float16 holds values up to {np.finfo(np.float16).max:.0f}; these embeddings reach "
                f"{np.abs(rows).max():.0f}. Use stored=float32 or stored=int8."
            )
        return Coded(rows.astype(np.float16))
    scale = np.abs(rows).max(axis=-1, initial=0.0).astype(np.float32) / _LARGEST
    values = np.rint(rows / np.where(scale > 0, scale, 1)[..., None])
    return Coded(values.astype(np.int8), scale)


@dataclass(frozen=True)
class CodingError:
    """How far stored rows are from computed ones: |stored - computed| / |computed|, over all rows."""

    rows: int = 0
    squared: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(cls, rows: Float[np.ndarray, "*rows dim"], stored: Coded) -> CodingError:
        """Measure; a row of zeros is stored without error."""
        if stored.values is rows:
            return cls(rows=math.prod(rows.shape[:-1]))
        length = np.square(rows, dtype=np.float64).sum(-1)
        missed = np.square(rows - stored.decoded(), dtype=np.float64).sum(-1)
        relative = missed / np.where(length > 0, length, 1)
        return cls(relative.size, float(relative.sum()), float(np.sqrt(relative.max(initial=0.0))))

    def __add__(self, other: CodingError) -> CodingError:
        return CodingError(
            self.rows + other.rows, self.squared + other.squared, max(self.largest, other.largest)
        )

    def stated(self) -> dict[str, float]:
        """As it stands beside the numbers: root mean square and largest, three digits."""
        mean = math.sqrt(self.squared / self.rows) if self.rows else 0.0
        return {"root_mean_square": float(f"{mean:.3g}"), "largest": float(f"{self.largest:.3g}")}
