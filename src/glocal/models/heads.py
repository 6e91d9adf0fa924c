"""Heads on embeddings: the prototype head of DINO, and the projection and prediction heads of contrastive terms."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def unit_length(x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """L2-normalise the last axis in float32, whatever the precision around it."""
    with torch.autocast(x.device.type, enabled=False):
        return F.normalize(x.float(), dim=-1)


class PrototypeHead(nn.Module):
    """An MLP to a bottleneck on the unit sphere, and prototypes there (Caron et al. 2021, DINO, section 3.1).

    The last product, by far the largest, is left to the caller: a loss takes `bottleneck(x)` and `prototypes()` and
    never holds all logits. Prototypes are unit vectors; without `norm_last_layer` each has a learnt length. Weights
    start as in the reference: MLP truncated normal 0.02, zero biases; prototypes as PyTorch's linear layer; lengths 1.
    With `fan_in` the MLP's std is 1/sqrt(fan in), for small widths and high learning rates: Adam moves every weight by
    about the learning rate, and 0.002 a step is too much for weights of 0.02.

    >>> head = PrototypeHead(64, hidden=128, bottleneck=32, prototypes=100)
    >>> head.bottleneck(torch.randn(5, 64)).shape, head.prototypes().shape
    (torch.Size([5, 32]), torch.Size([100, 32]))
    """

    unit_lengths: Tensor

    def __init__(
        self, embed_dim: int, *, hidden: int = 2048, bottleneck: int = 256, prototypes: int = 65536,
        layers: int = 3, norm_last_layer: bool = True, bias: bool = True, fan_in: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.mlp = _mlp([embed_dim] + [hidden] * (layers - 1) + [bottleneck], bias)
        _initialise(self.mlp, fan_in)
        bound = bottleneck**-0.5
        self.directions = nn.Parameter(torch.empty(prototypes, bottleneck).uniform_(-bound, bound))
        self.lengths = None if norm_last_layer else nn.Parameter(torch.ones(prototypes, 1))
        self.register_buffer("unit_lengths", torch.ones(prototypes, 1), persistent=False)

    def bottleneck(self, x: Float[Tensor, "*batch embed_dim"]) -> Float[Tensor, "*batch bottleneck"]:
        """Unit vectors, float32."""
        return unit_length(self.mlp(x))

    def prototypes(self) -> Float[Tensor, "prototypes bottleneck"]:
        """Prototype vectors, float32: unit vectors, or of their learnt lengths."""
        lengths = self.unit_lengths if self.lengths is None else self.lengths
        with torch.autocast(self.directions.device.type, enabled=False):
            # PyTorch's own weight normalisation in one kernel: a quarter of the time of F.normalize with its backward.
            return torch._weight_norm(self.directions.float(), lengths.float(), 0)

    def prototype_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters behind `prototypes` (those that stand still in the first epochs)."""
        yield self.directions
        if self.lengths is not None:
            yield self.lengths

    def forward(self, x: Float[Tensor, "*batch embed_dim"]) -> Float[Tensor, "*batch prototypes"]:
        """Logits: cosine of token and prototype, times the prototype's length. For small use; losses stream instead."""
        return self.bottleneck(x) @ self.prototypes().T


class ProjectionHead(nn.Module):
    """An MLP without biases onto the unit sphere (Zhou et al. 2022, Mugs: embedding -> 2048 -> 2048 -> 256).

    `fan_in` as in `PrototypeHead`.

    >>> ProjectionHead(64)(torch.randn(5, 64)).shape
    torch.Size([5, 256])
    """

    def __init__(
        self, embed_dim: int, *, hidden: int = 2048, out_dim: int = 256, layers: int = 3, fan_in: bool = False
    ) -> None:
        super().__init__()
        self.mlp = _mlp([embed_dim] + [hidden] * (layers - 1) + [out_dim], bias=False)
        _initialise(self.mlp, fan_in)

    def forward(self, x: Float[Tensor, "*batch embed_dim"]) -> Float[Tensor, "*batch out_dim"]:
        """Unit vectors, float32."""
        return unit_length(self.mlp(x))


class PredictionHead(nn.Module):
    """The student's extra MLP after its projection (Mugs: 256 -> 4096 -> 256, no biases), onto the unit sphere.

    It keeps PyTorch's default weights, as the reference creates it after its own initialisation ran.

    >>> PredictionHead()(torch.randn(5, 256)).shape
    torch.Size([5, 256])
    """

    def __init__(self, dim: int = 256, *, hidden: int = 4096) -> None:
        super().__init__()
        self.mlp = _mlp([dim, hidden, dim], bias=False)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Unit vectors, float32."""
        return unit_length(self.mlp(x))


def _mlp(widths: list[int], bias: bool) -> nn.Sequential:
    """Linear layers with GELU between them."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        layers += ([nn.GELU()] if number else []) + [nn.Linear(before, after, bias=bias)]
    return nn.Sequential(*layers)


def _initialise(mlp: nn.Sequential, fan_in: bool = False) -> None:
    for module in mlp:
        if isinstance(module, nn.Linear):
            std = module.in_features**-0.5 if fan_in else 0.02
            # The reference cuts at an absolute 2.0, which is no cut: at two deviations the std would be 0.0176.
            bound = 2 * std if fan_in else 2.0
            nn.init.trunc_normal_(module.weight, std=std, a=-bound, b=bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
