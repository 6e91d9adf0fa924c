"""Which patch of the teacher's view shows what a patch of the student's view shows: geometry only, no features.

A view is a box of the source image, mirrored left-right where `flip` is set, cut into a grid of cells (the ViT's
patches). Rows and columns are independent, so every rule works on one axis at a time and the two axes are combined at
the end: nothing of size (patches x patches) is ever made. Source: PW-Self (Javidani et al., arXiv 2310.18651).

Two rules:

- `center`: the teacher cell that contains the student cell's centre. Every student patch has at most one teacher patch;
  a teacher patch may serve several students.
- `paper`: the reference's rule. Each view's part of the common rectangle is rounded to whole cells, the longer side is
  sub-sampled to the shorter one, and what remains is paired in source order; one-to-one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Real
from torch import Tensor

from glocal.errors import ConfigError, DataError, nearest_name
from glocal.matching.axis import Side, bilinear_axis, center_axis, limit_scale, paper_axis

Rule = Literal["center", "paper"]
Weight = Literal["none", "overlap"]
Grid = tuple[int, int]

RULES: tuple[Rule, ...] = ("center", "paper")
WEIGHTS: tuple[Weight, ...] = ("none", "overlap")


class Matches(NamedTuple):
    """Matched patches of a batch as flat lists. A patch is numbered row * columns + column; there is no class token."""

    image: Int64[Tensor, " matches"]
    patch_a: Int64[Tensor, " matches"]
    patch_b: Int64[Tensor, " matches"]
    weight: Float[Tensor, " matches"]


class TeacherIndex(NamedTuple):
    """For every student patch its teacher patch, -1 where it has none, and the match's weight, 0 where it has none."""

    patch: Int64[Tensor, "*pairs patches_b"]
    weight: Float[Tensor, "*pairs patches_b"]


class BilinearTargets(NamedTuple):
    """For every student patch the four teacher patches around its centre and their weights (sum 1, or 0 if none)."""

    patch: Int64[Tensor, "*pairs patches_b 4"]
    weight: Float[Tensor, "*pairs patches_b 4"]


def match_patches(
    boxes_a: Real[Tensor, "batch 4"],
    flips_a: Bool[Tensor, " batch"],
    grid_a: Grid,
    boxes_b: Real[Tensor, "batch 4"],
    flips_b: Bool[Tensor, " batch"],
    grid_b: Grid,
    rule: Rule = "center",
    weight: Weight = "none",
    max_scale_ratio: float | None = None,
) -> Matches:
    """List the matched patches of teacher views `a` and student views `b`, image by image: `teacher_index` made flat.

    Matches are ordered by image; then, under rule `center`, by student patch, and under rule `paper` in source order
    (top to bottom, left to right, whatever the flips), which is the reference's order. How many there are depends on
    the boxes, so on a GPU this call waits for the device; a training step uses `teacher_index`, which does not.
    Several view pairs of an image go into one call by flattening (image, pair) into the batch axis.

    Rule `paper` is section 2 of the method's specification with its rounding (half to even) and its
    floor(linspace) sub-sampling. Departure from the reference's code, which scales the already divided ratio
    (n * (x / w)): the product is taken first ((n * x) / w), as the specification writes it, so that exact halves are
    seen as such. The two differ only there (grid 28: 1 in 8,000 roundings, grids up to 14: none).

    Args:
        boxes_a: (top, left, height, width) of each teacher view in source pixels.
        flips_a: which teacher views are mirrored left-right.
        grid_a: (rows, columns) of the teacher's patches.
        boxes_b: the student's boxes.
        flips_b: the student's flips.
        grid_b: the student's grid.
        rule: `center` or `paper`.
        weight: `none` gives 1; `overlap` gives the area both patches share over the smaller patch's area, in 0..1.
        max_scale_ratio: drop pairs whose patches differ in height or in width, in source pixels, by more than this
            factor (1 or more).

    Raises:
        ConfigError: for an unknown rule or weight, a grid without cells or a scale ratio below 1.
        DataError: for boxes and flips of other shapes; for boxes without area, not finite or with a negative corner
            (values are looked at on the CPU only, because looking would make a GPU wait).

    >>> box, flip = torch.tensor([[0, 0, 8, 8]]), torch.tensor([False])
    >>> match_patches(box, flip, (2, 2), box, ~flip, (2, 2)).patch_a.tolist()
    [1, 0, 3, 2]
    """
    if boxes_a.dim() != 2:
        raise DataError(
            f"Boxes must have shape (batch, 4), got {tuple(boxes_a.shape)}. Flatten the leading axes, or use "
            "teacher_index, which takes any."
        )
    index = teacher_index(boxes_a, flips_a, grid_a, boxes_b, flips_b, grid_b, rule, weight, max_scale_ratio)
    image, patch_b = (index.patch >= 0).nonzero(as_tuple=True)
    if rule == "paper":
        column = patch_b % grid_b[1]
        in_source = torch.where(flips_b[image], grid_b[1] - 1 - column, column) - column + patch_b
        order = (image * (grid_b[0] * grid_b[1]) + in_source).argsort()
        image, patch_b = image[order], patch_b[order]
    return Matches(image, index.patch[image, patch_b], patch_b, index.weight[image, patch_b])


def teacher_index(
    boxes_a: Real[Tensor, "*#pairs 4"],
    flips_a: Bool[Tensor, "*#pairs"],
    grid_a: Grid,
    boxes_b: Real[Tensor, "*#pairs 4"],
    flips_b: Bool[Tensor, "*#pairs"],
    grid_b: Grid,
    rule: Rule = "center",
    weight: Weight = "none",
    max_scale_ratio: float | None = None,
) -> TeacherIndex:
    """Give every student patch its teacher patch. The matcher; it never waits for the device.

    Leading axes broadcast, so all pairs of a teacher and a student view group are one call: boxes of shape
    (batch, teachers, 1, 4) and (batch, 1, students, 4) give (batch, teachers, students, patches_b). Unmatched patches
    have patch -1; clamp it at 0 before a gather. Under rule `paper` a pair may be matched with overlap weight 0, so
    `patch >= 0`, not the weight, says what is matched.

    Arguments and errors as for `match_patches`, its flat form.

    >>> box, flip = torch.tensor([0.0, 0.0, 8.0, 8.0]), torch.tensor(False)
    >>> teacher_index(box, flip, (2, 2), box + torch.tensor([4.0, 0, 0, 0]), flip, (2, 2)).patch.tolist()
    [2, 3, -1, -1]
    """
    _check_settings(rule, weight, max_scale_ratio)
    sides = _sides((boxes_a, flips_a, grid_a), (boxes_b, flips_b, grid_b))
    match_axis = center_axis if rule == "center" else paper_axis
    rows, columns = (match_axis(a, b) for a, b in sides)
    if max_scale_ratio is not None:
        rows, columns = (
            limit_scale(cells, *side, max_scale_ratio)
            for cells, side in zip((rows, columns), sides, strict=True)
        )
    row_a, column_a = rows.cell[..., :, None], columns.cell[..., None, :]
    matched = (row_a >= 0) & (column_a >= 0)
    patch = torch.where(matched, row_a * grid_a[1] + column_a, -1)
    if weight == "none":
        return TeacherIndex(patch.flatten(-2), matched.float().flatten(-2))
    # Unmatched lines carry no overlap, so their product is the required zero.
    (row_side_a, row_side_b), (column_side_a, column_side_b) = sides
    area_a, area_b = row_side_a.step * column_side_a.step, row_side_b.step * column_side_b.step
    shared = (rows.overlap / torch.minimum(area_a, area_b))[..., :, None] * columns.overlap[..., None, :]
    return TeacherIndex(patch.flatten(-2), shared.float().flatten(-2))


def bilinear_targets(
    boxes_a: Real[Tensor, "*#pairs 4"],
    flips_a: Bool[Tensor, "*#pairs"],
    grid_a: Grid,
    boxes_b: Real[Tensor, "*#pairs 4"],
    flips_b: Bool[Tensor, "*#pairs"],
    grid_b: Grid,
) -> BilinearTargets:
    """Give every student patch the four teacher patches around its centre, with bilinear weights.

    Reading the teacher's distributions with these weights gives the target at the student's exact position instead of
    the nearest cell's. Beyond the outermost centres of the teacher's cells the border cell is read (clamped). Patches
    whose centre the teacher's view does not contain have weight 0 on patch 0. Weights of overlap or of scale, where
    wanted, are `teacher_index`'s with rule `center`, which keeps the same patches.

    Arguments, broadcasting and errors as for `teacher_index`.

    >>> box, flip = torch.tensor([0.0, 0.0, 8.0, 8.0]), torch.tensor(False)
    >>> bilinear_targets(box, flip, (1, 2), box, flip, (1, 1)).weight.tolist()
    [[0.5, 0.5, 0.0, 0.0]]
    """
    rows, columns = _sides((boxes_a, flips_a, grid_a), (boxes_b, flips_b, grid_b))
    row, row_weight = bilinear_axis(*rows)
    column, column_weight = bilinear_axis(*columns)
    patch = row[..., :, None, :, None] * grid_a[1] + column[..., None, :, None, :]
    weight = row_weight.float()[..., :, None, :, None] * column_weight.float()[..., None, :, None, :]
    patch = torch.where(weight > 0, patch, 0)
    return BilinearTargets(patch.flatten(-2).flatten(-3, -2), weight.flatten(-2).flatten(-3, -2))


_View = tuple[Tensor, Tensor, Grid]


def _sides(a: _View, b: _View) -> tuple[tuple[Side, Side], tuple[Side, Side]]:
    """Check both views, bring them to one batch shape and split them into axes: rows of a and b, columns of a and b."""
    for name, (boxes, flips, grid) in (("a", a), ("b", b)):
        _check_view(name, boxes, flips, grid)
    try:
        shape = np.broadcast_shapes(a[1].shape, b[1].shape)  # torch's imports sympy at its first call: 0.7 s
    except ValueError as error:
        raise DataError(
            f"Views a have batch shape {tuple(a[1].shape)}, views b {tuple(b[1].shape)}: they don't pair up. "
            "Give both the same number of boxes, or shapes that broadcast."
        ) from error
    (rows_a, columns_a), (rows_b, columns_b) = _axes(*a, shape), _axes(*b, shape)
    return (rows_a, rows_b), (columns_a, columns_b)


def _axes(boxes: Tensor, flips: Tensor, grid: Grid, shape: tuple[int, ...]) -> tuple[Side, Side]:
    box = boxes.double().expand(*shape, 4)
    top, left, height, width = (box[..., i : i + 1] for i in range(4))
    return Side(top, height, None, grid[0]), Side(left, width, flips.expand(shape)[..., None], grid[1])


def _check_view(name: str, boxes: Tensor, flips: Tensor, grid: Grid) -> None:
    """Refuse what is no view. Values are read only on the CPU, where reading them waits for nothing."""
    if len(grid) != 2 or min(grid) < 1:
        raise ConfigError(
            f"grid_{name} is {tuple(grid)}; it needs at least one row and one column of patches. "
            "A view smaller than a patch has none: make the views larger or the patches smaller."
        )
    if boxes.shape[-1:] != (4,) or boxes.shape[:-1] != flips.shape:
        raise DataError(
            f"boxes_{name} has shape {tuple(boxes.shape)} and flips_{name} {tuple(flips.shape)}; "
            "they must be (..., 4) and (...) with the same leading axes."
        )
    if boxes.device.type != "cpu" or torch.compiler.is_compiling():
        return
    good = (boxes[..., :2] >= 0).all(-1) & (boxes[..., 2:] > 0).all(-1) & boxes.isfinite().all(-1)
    if not good.all():
        seen = boxes[~good][0].tolist()
        raise DataError(
            f"boxes_{name} holds {seen}; (top, left, height, width) must be finite, the corner not negative (a box "
            "lies inside its source image) and the sides positive. Check how the view was cropped."
        )


def _check_settings(rule: str, weight: str, max_scale_ratio: float | None) -> None:
    for setting, value, allowed in (("rule", rule, RULES), ("weight", weight, WEIGHTS)):
        if value not in allowed:
            raise ConfigError(
                f"{setting} '{value}' is unknown.{nearest_name(str(value), allowed)} Allowed: {', '.join(allowed)}."
            )
    if max_scale_ratio is not None and not max_scale_ratio >= 1:
        raise ConfigError(
            f"max_scale_ratio is {max_scale_ratio}; it must be 1 or more, or None for no limit."
        )
