"""Stateless random numbers: uniforms that are a pure function of a 64-bit seed per image and a position.

Why not a generator: a generator's draws depend on the order of calls, hence on batch size, workers, processes and
device, and its state must be saved to resume. A counter-based hash (the finaliser of SplitMix64; Steele, Lea and
Flood 2014) has none of that, vectorises over images and patches, and gives equal bits on every device.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# Constants of SplitMix64 as signed 64-bit integers; torch multiplies int64 modulo 2**64, as the algorithm asks.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _shift_right(x: Int64[Tensor, "*shape"], bits: int) -> Int64[Tensor, "*shape"]:
    """Logical shift: torch's `>>` on int64 copies the sign bit, which the mask removes."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """Hash every integer to one that looks unrelated (a bijection on 64 bits)."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def fold_in(seed: Int64[Tensor, "*shape"], data: int | Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """Derive an independent seed, for example one a view from one an image: `fold_in(seed, view)`."""
    return mix(mix(seed + _GOLDEN) ^ (data + 1) * _GOLDEN)


def uniforms(seed: Int64[Tensor, " units"], count: int) -> Float[Tensor, "units count"]:
    """Draw `count` float32 uniforms in [0, 1) for every seed; element (i, j) depends on seed i and j only.

    >>> uniforms(torch.tensor([1, 2]), 3).shape
    torch.Size([2, 3])
    """
    counter = torch.arange(1, count + 1, device=seed.device, dtype=torch.int64) * _GOLDEN
    bits = mix(seed[:, None] + counter[None, :])
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24


def hash_seed(*parts: int) -> int:
    """Fold plain integers (run seed, epoch, image number) into one 64-bit seed; what the workers use."""
    seed = torch.zeros((), dtype=torch.int64)
    for part in parts:
        seed = fold_in(seed, part)
    return int(seed)
