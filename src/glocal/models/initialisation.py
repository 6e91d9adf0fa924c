"""Initial weights of a backbone."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Small models learn faster when positions and the class token are not drowned by the patches (std 0.02 is).
_FAN_IN_POSITION_STD = 0.3
# Directions with less than this share of the largest variance are mostly noise, which whitening would blow up.
_WHITENING_FLOOR = 0.01


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


@torch.no_grad()
def whiten(
    projection: nn.Conv2d,
    mean: Float[Tensor, " pixels"],
    covariance: Float[Tensor, "pixels pixels"],
    generator: torch.Generator,
) -> None:
    """Set a patch projection so that its outputs over such patches are uncorrelated, of mean 0 and mean variance 1.

    W = s R diag((l + 0.01 max l)^-1/2) V^T and b = -W mean, with the covariance's eigenvectors V and eigenvalues l, and R a
    random matrix with orthonormal columns, so that no output channel stands for one frequency alone. A narrow embedding
    takes the largest eigenvalues only. After the whitened first layers of Coates and Ng (2012); trained on from there.
    """
    values, vectors = torch.linalg.eigh(covariance.double().cpu())
    width = projection.out_channels
    values, vectors = values.clamp_min(0.0)[-width:], vectors[:, -width:]
    raised = values + _WHITENING_FLOOR * values[-1]
    drawn = torch.randn(width, len(values), generator=generator, dtype=torch.float64)
    scale = (width / (values / raised).sum()).sqrt()
    weight = scale * torch.linalg.qr(drawn).Q @ (vectors * raised.rsqrt()).T
    projection.weight.copy_(weight.view_as(projection.weight))
    if projection.bias is not None:
        projection.bias.copy_(-weight @ mean.double().cpu())
