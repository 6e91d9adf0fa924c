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
# Trockman and Kolter's values for vision: weight of the identity and of the noise in W_q^T W_k and in W_proj W_v.
_QUERY_KEY, _VALUE_PROJECTION = 0.7, 0.4


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


@torch.no_grad()
def mimic_trained_attention(
    qkv: Float[Tensor, "three_dim dim"], projection: Float[Tensor, "dim dim"], num_heads: int
) -> None:
    """Draw attention's weights as those of trained transformers look: tokens attend to their like, and lessen it.

    Trockman and Kolter 2023 (arXiv 2305.09828), section 3: for each head W_q^T W_k is the closest product of its width
    to 0.7 (Z + I), and W_proj W_v of all heads is 0.4 (Z - I), with Z normal of variance 1/dim, each factored evenly by an
    SVD. Departure: positions stay learnt, where the paper sets them to sines. Cost: `num_heads` + 1 SVDs a block.

    Args:
        qkv: weight of the joint projection, overwritten.
        projection: weight of the output projection, overwritten.
        num_heads: heads, each of dim / num_heads rows of `qkv`.
    """
    dim = projection.shape[0]
    width = dim // num_heads
    identity = torch.eye(dim)
    for head in range(num_heads):
        noise = torch.randn(dim, dim) * dim**-0.5
        left, strengths, right = torch.linalg.svd(_QUERY_KEY * (noise + identity))
        root = strengths[:width].sqrt()
        rows = slice(head * width, (head + 1) * width)
        qkv[:dim][rows] = (left[:, :width] * root).T
        qkv[dim : 2 * dim][rows] = right[:width] * root[:, None]
    noise = torch.randn(dim, dim) * dim**-0.5
    left, strengths, right = torch.linalg.svd(_VALUE_PROJECTION * (noise - identity))
    qkv[2 * dim :] = right * strengths.sqrt()[:, None]
    projection.copy_(left * strengths.sqrt())
