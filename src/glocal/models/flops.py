"""Counting the floating-point operations of whatever runs inside a block."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry


def flop_counter() -> FlopCounterMode:
    """Torch's counter, with the products that it doesn't know: in place, by a vector, and attention on CPUs."""
    aten, counter = torch.ops.aten, FlopCounterMode(display=False)
    attention = aten._scaled_dot_product_flash_attention
    attention_backward = aten._scaled_dot_product_flash_attention_backward
    counter.flop_registry |= {
        aten.addmm_: flop_registry[aten.addmm],
        aten.baddbmm_: flop_registry[aten.baddbmm],
        aten.mv: lambda matrix, *_, **__: 2 * matrix.numel(),
        aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[attention],
        aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[attention_backward],
    }
    return counter
