"""In which precision matrix products run, and how that is decided."""

from __future__ import annotations

import functools

import torch


@functools.cache
def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 matrices with instructions of its own."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Private, yet the only place where torch tells; without them the answer is no, which costs speed only.
        asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, bool)() for name in asked)
    return device.type == "mps"
