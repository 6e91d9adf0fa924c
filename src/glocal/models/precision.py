"""How precisely a frozen model computes, and searches that are exact whatever a run has set."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from glocal.models.device import has_native_bfloat16

Precision = Literal["float32", "bfloat16"]
"""float32: exact products, no TF32 on GPUs; bfloat16: products of bfloat16 numbers, normalisation and softmax in float32
(autocast)."""
AskedPrecision = Literal["float32", "bfloat16", "auto"]
"""What may be asked for; auto: bfloat16 where the processor has the instructions."""


def settle_precision(asked: AskedPrecision, device: torch.device) -> Precision:
    """What `auto` means on a device; anything else is itself."""
    if asked == "auto":
        return "bfloat16" if has_native_bfloat16(device) else "float32"
    return asked


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
    with exact_products(), torch.autocast(device.type, enabled=False), _fast_float32(device):
        yield


def _fast_float32(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """OneDNN's linear layers on a CPU whose torch has them; it names none without oneDNN."""
    there = device.type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return _OneDnnLinear() if there else contextlib.nullcontext()


class _OneDnnLinear(TorchFunctionMode):
    """float32 linear layers by oneDNN, as torch computes those of bfloat16, instead of by MKL.

    On AMD processors MKL leaves out their wide instructions: 80 against 175 GFLOP/s a core (Zen 5, products of ViTs of 128
    and 384), and 0.65 of a small ViT's time. Sums are as exact in both. For features without gradient only.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Take linear layers over; all else is torch's."""
        if func is not F.linear or kwargs or args[0].dtype != torch.float32 or args[1].dtype != torch.float32:
            return func(*args, **(kwargs or {}))
        bias = args[2] if len(args) > 2 else None
        return torch.ops.mkldnn._linear_pointwise(args[0], args[1], bias, "none", [], "")


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
