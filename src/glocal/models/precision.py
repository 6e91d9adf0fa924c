"""How precisely a frozen model computes, and searches that are exact whatever a run has set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]
"""float32: exact products, no TF32 on GPUs; bfloat16: products of bfloat16 numbers, normalisation and softmax in float32
(autocast)."""


@contextlib.contextmanager
def computing(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute products in one stated precision, whatever is set globally; that is restored afterwards.

    >>> with computing("float32", torch.device("cpu")):
    ...     torch.get_float32_matmul_precision()
    'highest'
    """
    if precision == "bfloat16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
        return
    with exact_products(), torch.autocast(device.type, enabled=False):
        yield


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Products and convolutions of float32 numbers in float32: on GPUs neither TF32 nor anything shorter.

    Ties in rankings, and the order of neighbours, rest on it.
    """
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
