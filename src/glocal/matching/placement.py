"""One placement of an image in another that most of their matched patches agree on: what tells a copy from a likeness."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

SCALES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.11, 1.25, 1.42, 1.67)
"""How large the second image shows what the first does; those of crops down to a third of the area, and their inverses."""
REACH = 1.0
"""Patches by which a match may miss its place: half a patch each of rounding, and a few degrees of turn. Of the coarser of
both images, so that a pair scores much alike in either order."""
LEAST = 0.3
"""Share of the patches that a placement is held against at least: a small overlap proves little."""


class Placements(NamedTuple):
    """The best placement of each pair of images."""

    score: Float[Tensor, " pairs"]
    """Sum of the cosines of agreeing matches over the patches that could match: 1 for an image and itself."""
    second: Int64[Tensor, "pairs patches"]
    """The patch of the second image that each patch of the first chose."""
    agrees: Bool[Tensor, "pairs patches"]
    """Whether that choice is mutual and lies where the placement puts it."""
    cosine: Float[Tensor, "pairs patches"]
    where: Float[Tensor, "pairs 2 3"]
    """The placement as an affine map from the first image to the second, whose sides run from -1 to 1."""


def place_patches(
    first: Float[Tensor, "pairs patches dim"],
    second: Float[Tensor, "pairs patches dim"],
    grid: tuple[int, int],
) -> Placements:
    """Find, for each pair of images, the mirroring, scale and shift that the most matched patches agree on.

    Patches that choose each other by cosine vote: for each scale and mirroring the shift is the median of their
    displacements, and those within `REACH` of it agree. The score divides the sum of their cosines by the number of
    patches that the placement lets match. Patches have length 1, row by row on `grid`.

    >>> place_patches(torch.eye(4)[None], torch.eye(4)[None], (2, 2)).score.tolist()
    [1.0]
    """
    rows, columns = grid
    similarity = torch.bmm(first, second.transpose(1, 2))
    cosine, chosen = similarity.max(dim=2)
    mutual = similarity.argmax(dim=1).gather(1, chosen) == torch.arange(rows * columns)
    mutual &= cosine > 0
    y, x = torch.meshgrid(torch.arange(rows).float(), torch.arange(columns).float(), indexing="ij")
    place = torch.stack([x.flatten(), y.flatten()], 1)
    sides = torch.tensor([float(columns), float(rows)])
    last = sides - 1
    best = torch.full((len(first),), -1.0)
    agreeing, where = torch.zeros_like(mutual), torch.zeros(len(first), 2, 3)
    for mirrored in (False, True):
        seen = torch.stack([last[0] - place[:, 0], place[:, 1]], 1) if mirrored else place
        for scale in SCALES:
            moved = place[chosen] - scale * seen
            shift = moved.masked_fill(~mutual[..., None], torch.nan).nanmedian(1, keepdim=True).values
            # Displacements are multiples of tenths: rounding must not decide about those of exactly REACH.
            agrees = ((moved - shift).abs().amax(-1) <= REACH * max(1.0, scale) + 1e-4) & mutual
            there = scale * seen + shift
            visible = ((there > -0.5) & (there < last + 0.5)).all(-1).sum(1)
            possible = (visible * min(1.0, scale * scale)).clamp(min=LEAST * rows * columns)
            score = ((cosine * agrees).sum(1) / possible).nan_to_num()
            better = score > best
            best, agreeing = torch.where(better, score, best), torch.where(better[:, None], agrees, agreeing)
            turned = torch.diag(torch.tensor([-scale if mirrored else scale, scale])).expand(len(first), 2, 2)
            moved_by = scale * (1 - 1 / sides) + (2 * shift[:, 0].nan_to_num() + 1) / sides - 1
            placed = torch.cat([turned, moved_by[..., None]], dim=2)
            where = torch.where(better[:, None, None], placed, where)
    return Placements(best.clamp(max=1.0), chosen, agreeing, cosine, where)
