"""A few of the matched pairs, drawn for every image by its seed."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from glocal.views.randomness import fold_in

# Keeps these draws apart from all else that is drawn from an image's seed.
_SALT = int.from_bytes(b"pairs", "big")


def draw_pairs(
    group: Int64[Tensor, " pairs"], seed: Int64[Tensor, " groups"], most: int
) -> tuple[Int64[Tensor, " drawn"], Int64[Tensor, " drawn"]]:
    """Draw up to `most` pairs of every group (an image, or an image's pair of views): which, and each one's slot in
    (groups x most).

    A function of a group's seed and its own pairs, so that neither batch nor processes change what is drawn.

    >>> draw_pairs(torch.tensor([0, 0, 0, 2]), torch.tensor([7, 8, 9]), 2)[1]
    tensor([0, 1, 4])
    """
    draw = fold_in(fold_in(seed, _SALT)[group], _number_within(group))
    order = draw.argsort()
    order = order[group[order].argsort(stable=True)]
    number = _number_within(group[order])
    chosen = number < most
    order, number = order[chosen], number[chosen]
    return order, group[order] * most + number


def _number_within(group: Int64[Tensor, " pairs"]) -> Int64[Tensor, " pairs"]:
    """How many pairs of the same group come before each pair."""
    order = group.argsort(stable=True)
    counts = torch.bincount(group)
    first = counts.cumsum(0) - counts
    number = torch.empty_like(group)
    number[order] = torch.arange(group.numel()) - first[group[order]]
    return number
