"""Muon: momentum whose matrices are made orthogonal before they are subtracted; AdamW for whatever is no matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from glocal.models.device import has_native_bfloat16

_QUINTIC = (3.4445, -4.7750, 2.0315)
_STEPS = 5


class _Block(NamedTuple):
    """One matrix of a step: a view of (part of) a parameter, where it moves to, and its group's settings."""

    parameter: Tensor
    direction: Tensor
    group: dict[str, Any]


class MuonWithAdamW(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for groups with `matrices` above 0; fused AdamW for the others.

    A group's `matrices` says of how many matrices of equal height, one above the other, its parameters consist: 3 for the
    queries, keys and values of one projection, each of which is made orthogonal by itself. With gradient g, momentum mu
    and rate r a matrix moves as

        m <- mu m + (1 - mu) g;   u = mu m + (1 - mu) g (Nesterov);   w <- (1 - r decay) w - r sqrt(max(1, rows / columns)) orth(u)

    where orth(u) brings all singular values of u near 1 (see `orthogonalise`). Matrices of equal shape, of whichever layer,
    go through it in one batch. The same update is computed on every process: gradients are equal there, and sharing the
    matrices out would cost a message for each. Departure: u is a convex mixture, as in torch.optim.Muon; orth is blind to
    its length. `step` frees the gradients of matrices once they are used, so that AdamW passes them by.

    >>> weight = torch.nn.Parameter(torch.eye(4, 2))
    >>> optimiser = MuonWithAdamW([{"params": [weight], "matrices": 1}], lr=0.02)
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float = 0.95, **adamw: Any) -> None:
        super().__init__([{"matrices": 0} | group for group in groups], **adamw)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; nothing where `found_inf` (set from outside, as for AdamW) is 1."""
        bad: Tensor | None = getattr(self, "found_inf", None)
        shapes: dict[tuple[int, ...], list[_Block]] = {}
        for group in self.param_groups:
            if group["matrices"]:
                for block in self._blocks(group, bad):
                    shapes.setdefault(_wide(block.direction).shape, []).append(block)
        for blocks in shapes.values():
            updates = orthogonalise(torch.stack([_wide(block.direction) for block in blocks]))
            for block, update in zip(blocks, updates, strict=True):
                _move(block, update, bad)
        super().step()

    def _blocks(self, group: dict[str, Any], bad: Tensor | None) -> Iterator[_Block]:
        """Advance the momenta of a group and cut parameters and directions into their matrices."""
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        gradients = [p.grad for p in parameters]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                # AdamW looks for `step` in every state that it loads.
                state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(parameter)}
            parameter.grad = None
        momenta = [self.state[p]["momentum"] for p in parameters]
        if bad is not None:
            # A momentum moved towards itself stays bit for bit.
            gradients = [torch.where(bad > 0, m, g) for m, g in zip(momenta, gradients, strict=True)]
        torch._foreach_lerp_(momenta, gradients, 1.0 - self.momentum)
        directions = torch._foreach_lerp(gradients, momenta, self.momentum)
        for parameter, direction in zip(parameters, directions, strict=True):
            pieces = zip(parameter.chunk(group["matrices"]), direction.chunk(group["matrices"]), strict=True)
            yield from (_Block(piece, along, group) for piece, along in pieces)


def orthogonalise(matrices: Float[Tensor, "count rows columns"]) -> Float[Tensor, "count rows columns"]:
    """U V^T of each matrix U S V^T, roughly: singular values come out between about 0.7 and 1.2.

    Five steps of the quintic x <- a x + (b A + c A A) x with A = x x^T (Jordan et al. 2024), in bfloat16 where the
    processor multiplies that natively, which is exact enough for values that are only brought near 1. Takes full matrices:
    a sharded one is gathered by the caller. Cost of each step: 4 rows^2 columns + 2 rows^3, so pass wide matrices.

    >>> orthogonalise(torch.randn(3, 4, 8)).shape
    torch.Size([3, 4, 8])
    """
    first, second, third = _QUINTIC
    x = matrices.float()
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    if has_native_bfloat16(x.device):
        x = x.bfloat16()
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    return x.to(matrices.dtype)


def _wide(matrix: Tensor) -> Tensor:
    """The matrix with its longer side across."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def _move(block: _Block, update: Tensor, bad: Tensor | None) -> None:
    parameter, _, group = block
    rows, columns = parameter.shape
    rate = group["lr"]
    moved = parameter.mul(1.0 - rate * group["weight_decay"])
    moved.add_(update.mT if rows > columns else update, alpha=-rate * max(1.0, rows / columns) ** 0.5)
    parameter.copy_(moved if bad is None else torch.where(bad > 0, parameter, moved))
