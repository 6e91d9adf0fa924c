"""Patch features small enough for a page, which computes the similarities that a click there shows.

Sums of products of signed bytes are exact in a browser as in Python, and the two square roots, one product and one
division of a cosine are IEEE double precision in both: a test compares them bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor

DIRECTIONS = 64


class StoredPatches(NamedTuple):
    """Patches of some images as signed bytes, each vector with a scale of its own, and what was lost on the way."""

    values: Int8[np.ndarray, "images patches directions"]
    grid: tuple[int, int]
    kept: float
    """Share of the patches' squared length that lies in the directions kept, 0..1."""


def store_patches(
    patches: Float[Tensor, "images patches dim"], grid: tuple[int, int], directions: int = DIRECTIONS
) -> StoredPatches:
    """Turn patches into signed bytes along the directions that hold most of their length.

    Patches are brought to length 1, as cosine does, and not centred: inner products are kept as well as so many
    directions can (Eckart and Young 1936). Costs one eigendecomposition of dim x dim.
    """
    unit = torch.nn.functional.normalize(patches.double(), dim=-1)
    flat = unit.flatten(0, 1)
    kept = 1.0
    if flat.shape[1] > directions:
        lengths, axes = torch.linalg.eigh(flat.T @ flat)
        kept = float(lengths[-directions:].sum() / lengths.sum().clamp(min=1e-300))
        unit = unit @ axes[:, -directions:].flip(1)
    largest = unit.abs().amax(-1, keepdim=True).clamp(min=1e-300)
    values = (unit / largest * 127).round().clamp(-127, 127).to(torch.int8).cpu().numpy()
    return StoredPatches(values, grid, kept)
