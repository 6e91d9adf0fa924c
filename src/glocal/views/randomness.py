"""Stateless random numbers: uniforms that are a pure function of a 64-bit seed per image and a position.

Why not a generator: a generator's draws depend on the order of calls, hence on batch size, workers, processes and
device, and its state must be saved to resume. A counter-based hash (the finaliser of SplitMix64; Steele, Lea and
Flood 2014) has none of that, vectorises over images and patches, and gives equal bits on every device.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

# Constants of SplitMix64 as signed 64-bit integers; torch multiplies int64 modulo 2**64, as the algorithm asks.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
_MASK = 2**64 - 1


def _shift_right(x: Int64[Tensor, "*shape"], bits: int) -> Int64[Tensor, "*shape"]:
    """Logical shift: torch's `>>` on int64 copies the sign bit, which the mask removes."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """Hash every integer to one that looks unrelated (a bijection on 64 bits)."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def fold_in(seed: Int64[Tensor, "*#seeds"], data: int | Int64[Tensor, "*#seeds"]) -> Int64[Tensor, "*#seeds"]:
    """Derive an independent seed, for example one a view from one an image: `fold_in(seed, view)`; the two broadcast."""
    # A plain integer is multiplied here, modulo 2**64: as a tensor it would have to travel to the device.
    step = _signed((data + 1) * _GOLDEN) if isinstance(data, int) else (data + 1) * _GOLDEN
    return mix(mix(seed + _GOLDEN) ^ step)


def uniforms(seed: Int64[Tensor, " units"], count: int) -> Float[Tensor, "units count"]:
    """Draw `count` float32 uniforms in [0, 1) for every seed; element (i, j) depends on seed i and j only.

    >>> uniforms(torch.tensor([1, 2]), 3).shape
    torch.Size([2, 3])
    """
    counter = torch.arange(1, count + 1, device=seed.device, dtype=torch.int64) * _GOLDEN
    bits = mix(seed[:, None] + counter[None, :])
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24


def hash_seed(*numbers: int) -> int:
    """Fold plain integers (run seed, epoch, image number) into one signed 64-bit seed; equals repeated `fold_in` on 0.

    >>> hash_seed(7, 0, 3) == int(fold_in(fold_in(fold_in(torch.tensor(0), 7), 0), 3))
    True
    """
    seed = 0
    for number in numbers:
        seed = _mix_integer(_mix_integer(seed + _GOLDEN) ^ ((number + 1) * _GOLDEN))
    return _signed(seed)


def _signed(x: int) -> int:
    """The signed 64-bit integer with the last 64 bits of `x`."""
    return ((x + 2**63) & _MASK) - 2**63


def _mix_integer(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK
    return x ^ (x >> 31)


# The same hash on NumPy arrays: the workers draw for one image at a time, where a torch operation's fixed cost counts.

_SHIFT_30, _SHIFT_27, _SHIFT_31, _SHIFT_11 = (np.uint64(bits) for bits in (30, 27, 31, 11))
_GOLDEN_U, _MIX_1_U, _MIX_2_U = (np.uint64(constant & _MASK) for constant in (_GOLDEN, _MIX_1, _MIX_2))


def mix_array(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`mix` on an array of unsigned integers (not on a NumPy scalar, which would warn of overflow)."""
    x = (x ^ (x >> _SHIFT_30)) * _MIX_1_U
    x = (x ^ (x >> _SHIFT_27)) * _MIX_2_U
    mixed: NDArray[np.uint64] = x ^ (x >> _SHIFT_31)
    return mixed


def fold_in_array(seed: NDArray[np.uint64], data: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`fold_in` on arrays of unsigned integers; the two broadcast."""
    return mix_array(mix_array(seed + _GOLDEN_U) ^ (data + np.uint64(1)) * _GOLDEN_U)


def uniform_array(seed: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """Draw `count` float64 uniforms in [0, 1) for every seed, along a new last axis (`uniforms` with more bits)."""
    counter = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN_U
    drawn: NDArray[np.float64] = (mix_array(seed[..., None] + counter) >> _SHIFT_11).astype(
        np.float64
    ) * 2.0**-53
    return drawn
