"""Initial weights of a backbone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

# Small models learn faster when positions and the class token are not drowned by the patches (std 0.02 is).
_FAN_IN_POSITION_STD = 0.3


@torch.no_grad()
def initialise(model: nn.Module, scheme: Literal["auto", "trunc_normal", "fan_in"]) -> None:
    """Draw a backbone's weights; biases become zero, norms one and zero, LayerScale keeps its factor.

    `trunc_normal` (and `auto`) is the DINO family's: std 0.02 for every linear layer, position and class token; the
    patch projection keeps PyTorch's default. `fan_in` draws linear layers and the patch projection with
    std 1/sqrt(fan in), positions and class token with std 0.3.
    """
    fan_in = scheme == "fan_in"
    for module in model.modules():
        if isinstance(module, nn.Linear) or (fan_in and isinstance(module, nn.Conv2d)):
            std = module.weight[0].numel() ** -0.5 if fan_in else 0.02
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters(recurse=False):
        if name in ("cls_token", "pos_embed"):
            nn.init.trunc_normal_(parameter, std=_FAN_IN_POSITION_STD if fan_in else 0.02)
        elif name == "reg_token":
            nn.init.normal_(parameter, std=1e-6)
