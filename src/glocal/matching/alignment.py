"""Two pictures laid on each other to a part of a pixel, from where patches place them: what patches are too coarse to tell."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from glocal.matching.placement import LEAST

STEPS = (6, 8)
"""Of the descent at half the side and at the whole one: more move nothing."""
AROUND = 8
"""An eighth of a picture on every side is what a pixel's brightness and contrast are judged by."""
FAINT = 6.0
"""Grey values of 255: fainter structure counts less, or noise and the blocks of JPEG would count as much as edges."""
_DAMPING = 0.01
_FARTHEST = 0.15

Pictures = Float[Tensor, "pairs side side"]
Channels = Float[Tensor, "pairs channels side side"]
Affine = Float[Tensor, "pairs 2 3"]
"""From places of the first picture to places of the second; sides run from -1 to 1."""


class Alignments(NamedTuple):
    """The best alignment of each pair of pictures."""

    correlation: Float[Tensor, " pairs"]
    """Of what both show, -1 to 1; less where both show little of the same."""
    where: Affine


def align_pictures(first: Pictures, second: Pictures, where: Affine) -> Alignments:
    """Improve placements by the pictures themselves, and say how well these then agree.

    Lucas and Kanade 1981: Gauss-Newton on the squared difference of the first picture and the second, moved, over the six
    numbers of an affine map; at half the side first. Pictures are brought to mean 0 and deviation 1 around every pixel, so
    that brightness, contrast and shading don't count. Departure: of all steps the map of the highest correlation is kept.

    Args:
        first: grey values 0 to 255.
        second: likewise.
        where: the maps to begin with, right to about a sixteenth of the side (`place_patches` gives them).

    >>> grey = 255 * torch.rand(1, 32, 32)
    >>> round(float(align_pictures(grey, grey, torch.eye(2, 3)[None]).correlation), 3)
    1.0
    """
    half, other_half = (F.avg_pool2d(pictures[:, None], 2)[:, 0] for pictures in (first, second))
    _, where = _descend(_evened(half), _evened(other_half), where, STEPS[0])
    return Alignments(*_descend(_evened(first), _evened(second), where, STEPS[1]))


def _descend(one: Channels, other: Channels, where: Affine, steps: int) -> Alignments:
    """The best of some Gauss-Newton steps, and how well pictures agree there."""
    pairs, side = len(one), one.shape[-1]
    slopes = torch.cat([other, *_slopes(other)], dim=1)
    centres = (2 * torch.arange(side) + 1.0) / side - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    best = Alignments(torch.full((pairs,), -1.0), where)
    for step in range(steps + 1):
        grid = F.affine_grid(where, [pairs, 1, side, side], align_corners=False)
        inside = (grid.abs() <= 1).all(dim=-1)
        moved = F.grid_sample(slopes, grid, align_corners=False, padding_mode="border")
        correlation = _correlation(one[:, 0], moved[:, 0], inside)
        better = correlation > best.correlation
        best = Alignments(
            torch.where(better, correlation, best.correlation),
            torch.where(better[:, None, None], where, best.where),
        )
        if step < steps:
            moved = (moved * inside[:, None]).flatten(2)
            missing = (one[:, 0] * inside).flatten(1) - moved[:, 0]
            jacobian = (moved[:, 1:, None] * places).flatten(1, 2)
            normal = jacobian @ jacobian.transpose(1, 2)
            damping = _DAMPING * normal.diagonal(dim1=1, dim2=2).mean(1) + 1e-3
            change = torch.linalg.solve(
                normal + damping[:, None, None] * torch.eye(6), jacobian @ missing[..., None]
            )
            where = where + change.view(pairs, 2, 3).clamp(-_FARTHEST, _FARTHEST)
    return best


def _evened(pictures: Pictures) -> Channels:
    """Mean 0 and deviation 1 in a window around every pixel."""
    reach = pictures.shape[-1] // AROUND

    def mean(values: Channels) -> Channels:
        return F.avg_pool2d(values, 2 * reach + 1, 1, reach, count_include_pad=False)

    centred = pictures[:, None] - mean(pictures[:, None])
    return centred / (mean(centred.square()) + FAINT**2).sqrt()


def _slopes(pictures: Channels) -> tuple[Channels, Channels]:
    """Central differences along x and y, for sides from -1 to 1."""
    padded, quarter = F.pad(pictures, (1, 1, 1, 1), mode="replicate"), pictures.shape[-1] / 4
    along_x = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    along_y = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    return along_x * quarter, along_y * quarter


def _correlation(
    one: Pictures, other: Pictures, inside: Bool[Tensor, "pairs side side"]
) -> Float[Tensor, " pairs"]:
    """Over the pixels inside; of fewer than `LEAST` of all, in proportion less."""
    count = inside.sum((1, 2)).clamp(min=1)
    one, other = (
        (pixels - ((pixels * inside).sum((1, 2)) / count)[:, None, None]) * inside for pixels in (one, other)
    )
    spread = (one.square().sum((1, 2)) * other.square().sum((1, 2))).sqrt().clamp(min=1e-6)
    share = count / inside[0].numel()
    return (one * other).sum((1, 2)) / spread * (share / LEAST).clamp(max=1.0)
