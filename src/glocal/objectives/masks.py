"""Masks over the student's patches: which of them it must do without, and what it is asked about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor

from glocal.config import Config
from glocal.errors import ConfigError
from glocal.models.features import Features
from glocal.objectives.patch_pairs import refuse_moved_student
from glocal.views.augment import view_seeds
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup
from glocal.views.randomness import fold_in, uniforms

_SALT = sum(b"masks")
# Blocks tried for a view (BEiT tries ten times for each block it places).
_BLOCKS = 12
_ASPECT = (0.3, 1 / 0.3)


class MaskConfig(Config):
    """How many views have a mask, and what it looks like."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Probability that a view has one; whole views among masked ones keep image-level terms stable."""
    ratio: tuple[float, float] = (0.1, 0.5)
    """Smallest and largest share of a masked view's patches, drawn uniformly."""
    shape: Literal["block", "random"] = "block"
    """Rectangles as in BEiT and iBOT, which may fall short of the ratio drawn; or single patches."""

    @model_validator(mode="after")
    def _check(self) -> MaskConfig:
        low, high = self.ratio
        if not 0 < low <= high < 1:
            raise ValueError(f"ratio is ({low}, {high}); it must rise from above 0 to below 1")
        return self


class MaskedTokens(NamedTuple):
    """Rows to gather from each group's flattened (batch, views, patches), the same patches for both networks; a token's
    weight is one over the masked tokens of its view and over all views, masked or not.
    """

    student_rows: dict[str, Int64[Tensor, " tokens"]]
    teacher_rows: dict[str, Int64[Tensor, " tokens"]]
    weight: Float[Tensor, " all_tokens"]


def masked_groups(term: str, groups: Mapping[str, ViewGroup]) -> dict[str, ViewGroup]:
    """The groups that both networks see: the student with masks, the teacher whole.

    Raises:
        ConfigError: when there is none, or an operation moves the student's pixels only.
    """
    both = {name: group for name, group in groups.items() if group.seen_by == "both"}
    if not both:
        raise ConfigError(
            f"The term '{term}' asks the student about patches that the teacher sees in the same view, but no group is "
            "seen by both. Set a group's seen_by to both, or leave the term out."
        )
    refuse_moved_student(term, both)
    return both


def masks_of_views(
    views: Views,
    groups: Mapping[str, ViewGroup],
    masked: Mapping[str, ViewGroup],
    patch_size: int,
    masks: MaskConfig,
) -> dict[str, Bool[Tensor, "batch views patches"]]:
    """The masks of every view of the `masked` groups, on the CPU; a function of the images' seeds."""
    drawn = {}
    for number, name in enumerate(groups):
        if name in masked:
            height, width = groups[name].height_width
            seeds = fold_in(view_seeds(views.seed, number, groups[name].count), _SALT)
            mask = draw_masks(seeds.flatten(), (height // patch_size, width // patch_size), masks)
            drawn[name] = mask.view(*seeds.shape, -1)
    return drawn


def draw_masks(
    seed: Int64[Tensor, " views"], grid: tuple[int, int], masks: MaskConfig
) -> Bool[Tensor, "views patches"]:
    """Draw a mask for every view, all views at once.

    `block`: up to 12 blocks of aspect 0.3 to 3.3 and an area from a ninth of the view to what is still wanted, each
    placed if it adds something and not too much (Bao et al. 2022, BEiT, algorithm 1).

    >>> draw_masks(torch.tensor([1, 2]), (4, 4), MaskConfig(share=1.0, ratio=(0.25, 0.25), shape="random")).sum(dim=1)
    tensor([4, 4])
    """
    patches = grid[0] * grid[1]
    coin, level = uniforms(seed, 2).T
    low, high = masks.ratio
    wanted = ((low + (high - low) * level) * patches).floor().clamp(min=1).long() * (coin < masks.share)
    if masks.shape == "random":
        rank = uniforms(fold_in(seed, 0), patches).argsort(dim=1, stable=True).argsort(dim=1)
        return torch.lt(rank, wanted[:, None])
    mask = torch.zeros(len(seed), *grid, dtype=torch.bool)
    for number in range(_BLOCKS):
        draws = uniforms(fold_in(seed, 1 + number), 4)
        remaining = wanted - mask.flatten(1).sum(dim=1)
        block = _block(draws, remaining, grid)
        added = (block & ~mask).flatten(1).sum(dim=1)
        mask |= block & ((added > 0) & (added <= remaining))[:, None, None]
    return mask.flatten(1)


def _block(
    draws: Float[Tensor, "views 4"], remaining: Int64[Tensor, " views"], grid: tuple[int, int]
) -> Bool[Tensor, "views rows columns"]:
    """A rectangle in every view, or nothing where it would not fit."""
    rows, columns = grid
    smallest = max(1.0, rows * columns / 9)
    area = smallest + draws[:, 0] * (remaining - smallest)
    low, high = (math.log(aspect) for aspect in _ASPECT)
    aspect = (low + draws[:, 1] * (high - low)).exp()
    height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (height <= rows) & (width <= columns) & (height > 0) & (width > 0)
    top = (draws[:, 2] * (rows - height + 1)).floor()
    left = (draws[:, 3] * (columns - width + 1)).floor()
    row, column = torch.arange(rows)[None, :, None], torch.arange(columns)[None, None, :]
    top, left, height, width = (x[:, None, None] for x in (top, left, height, width))
    inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    return inside & fits[:, None, None]


def masked_tokens(
    student: Mapping[str, Features], teacher: Mapping[str, Features], groups: Mapping[str, ViewGroup]
) -> MaskedTokens:
    """Which tokens of these groups are masked and, where patches were dropped, still there."""
    views = sum(student[name].patches.shape[:2].numel() for name in groups)
    student_rows, teacher_rows, weights = {}, {}, [torch.zeros(0)]
    for name in groups:
        ours, theirs = student[name], teacher[name]
        batch, count, tokens = ours.patches.shape[:3]
        hidden = torch.zeros(batch, count, tokens, dtype=torch.bool) if ours.masked is None else ours.masked
        if ours.masked is not None and ours.kept is not None:
            hidden = ours.masked.gather(2, ours.kept)
        image, view, token = hidden.nonzero(as_tuple=True)
        first = image * count + view
        student_rows[name] = first * tokens + token
        # The same patches were kept for both networks, or for the student alone.
        both = ours.kept is None or theirs.kept is not None
        patch = token if both or ours.kept is None else ours.kept[image, view, token]
        teacher_rows[name] = first * theirs.patches.shape[2] + patch
        weights.append(1.0 / (hidden.sum(dim=2)[image, view] * views))
    return MaskedTokens(student_rows, teacher_rows, torch.cat(weights))
