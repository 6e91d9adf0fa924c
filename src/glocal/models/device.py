"""Which device to compute on, chosen or checked before anything is moved to it."""

from __future__ import annotations

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
