"""Which device to compute on, chosen or checked before anything is moved to it, and what it multiplies natively."""

from __future__ import annotations

import functools

import torch

from glocal.errors import ConfigError


def choose_device(name: str = "auto", key: str = "device") -> torch.device:
    """The device of this name; `auto` is the first GPU, or the CPU where there is none.

    Raises:
        ConfigError: when no such device is here.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    here = ["cpu", *(["mps"] if torch.backends.mps.is_available() else [])]
    if torch.cuda.is_available():
        here += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device("cuda" if "cuda" in here else "cpu")
    if name not in here:
        raise ConfigError(f"{key}={name}: this machine has no such device. Here: auto, {', '.join(here)}.")
    return torch.device(name)


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
