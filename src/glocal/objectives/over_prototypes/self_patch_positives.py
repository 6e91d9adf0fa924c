"""What SelfPatch's term does besides class attention: who takes part, positives' mean, and which of them wrapped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from glocal.matching.similar_patches import SimilarPatches
from glocal.views.randomness import uniforms


def taking_part(
    seed: Int64[Tensor, " batch"],
    share: float,
    seen: Int64[Tensor, "batch views kept"] | None,
    shape: Sequence[int],
) -> tuple[Int64[Tensor, "rows chosen"] | None, Int64[Tensor, "rows chosen"] | None]:
    """Draw a share of the patches that the student sees, from the images' seeds: their numbers in the grid, and where they
    stand among those seen (None: all of them). `shape` is (views, patches of the grid); (None, None) means every patch.

    >>> taking_part(torch.tensor([1]), 1.0, torch.tensor([[[3, 5]]]), (1, 9))
    (tensor([[3, 5]]), None)
    """
    views, patches = shape
    numbers = None if seen is None else seen.flatten(0, 1)
    if share >= 1:
        return numbers, None
    count = patches if numbers is None else numbers.shape[1]
    drawn = uniforms(seed, views // len(seed) * count).view(views, count)
    row = drawn.argsort(dim=1, stable=True)[:, : max(1, round(share * count))]
    return (row if numbers is None else numbers.gather(1, row)), row


def weighted_mean(
    tokens: Float[Tensor, "batch patches dim"], positives: SimilarPatches
) -> Float[Tensor, "batch chosen dim"]:
    """Mean of each patch's valid positives, weighted by cosine similarity; those below zero count next to nothing.

    One pass over (batch, chosen, dim): the positives' tokens are never copied. No gradient.

    >>> positives = SimilarPatches(torch.tensor([[[1, 2]]]), torch.tensor([[[True, True]]]), torch.tensor([[[0.9, 0.3]]]))
    >>> weighted_mean(torch.tensor([[[0.0], [4.0], [8.0]]]), positives).item()
    5.0
    """
    batch, patches, dim = tokens.shape
    weight = positives.similarity.clamp_min(1e-6) * positives.valid
    weight = weight / weight.sum(dim=-1, keepdim=True)
    first = torch.arange(0, batch * patches, patches, device=tokens.device)[:, None, None]
    row = (positives.patch + first).flatten(0, 1)
    table = tokens.detach().reshape(batch * patches, dim)
    summed = F.embedding_bag(row, table, mode="sum", per_sample_weights=weight.flatten(0, 1).to(table.dtype))
    return summed.view(batch, -1, dim)


def wrapped(
    centre: Int64[Tensor, "#batch patches"],
    patch: Int64[Tensor, "batch patches k"],
    grid: tuple[int, int],
    window: int,
) -> Bool[Tensor, "batch patches k"]:
    """Which positives of a torus lie across the border: farther from their patch than the window reaches.

    >>> wrapped(torch.tensor([[0]]), torch.tensor([[[1, 5, 30]]]), (6, 6), window=3).tolist()
    [[[False, True, True]]]
    """
    down = (patch // grid[1] - centre[..., None] // grid[1]).abs()
    right = (patch % grid[1] - centre[..., None] % grid[1]).abs()
    return torch.maximum(down, right) > window // 2
