"""Patch features small enough for a page, and the similarities that a click there shows.

The page computes what `similarities` computes, bit for bit: sums of products of signed bytes are exact in both
languages, and the two square roots, one product and one division are IEEE double precision in both.
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


def similarities(stored: StoredPatches, image: int, patch: int) -> Float[np.ndarray, "images patches"]:
    """Cosine of one patch with every patch of every image, from the stored bytes; 0 where a vector is all zeros.

    >>> import torch
    >>> float(similarities(store_patches(torch.eye(4)[None], (2, 2)), 0, 1)[0, 1])
    1.0
    """
    values = stored.values.astype(np.int64)
    asked = values[image, patch]
    products = values @ asked
    lengths = np.sqrt((values * values).sum(-1).astype(np.float64))
    below = lengths * lengths[image, patch]
    cosine: Float[np.ndarray, "images patches"] = np.divide(
        products, below, out=np.zeros(products.shape), where=below > 0
    )
    return cosine
