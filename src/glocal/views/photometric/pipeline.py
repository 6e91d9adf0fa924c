"""A pipeline of operations: first everything is drawn, for all views at once; then pixels change, some views at a time.

Randomness: view i has seed s; the operation at position k of the pipeline has seed `fold_in(s, k)`, and with
`unit="patch"` its cell c (row-major) has `fold_in(fold_in(s, k), c)`. Uniform 0 is the coin of `probability`, the
others the parameters. Nothing depends on the batch, and leaving out a step changes no other step's draws.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from glocal.errors import ConfigError
from glocal.views.photometric.colour import ColorJitter, ColourMap, Grayscale, apply_colour_matrix
from glocal.views.photometric.operation import PIECE_BYTES, OperationBase, Pixels
from glocal.views.randomness import fold_in, uniforms

Apply = Callable[..., Pixels]
"""(pixels of some units, which units of the batch they are) to changed pixels; may overwrite its argument."""


@dataclass(frozen=True)
class Step:
    """An operation, or neighbouring colour maps fused into one, with what was drawn for every unit of the batch."""

    unit: str
    seen_by: str
    apply: Apply


def apply_pipeline(
    pixels: Float[Tensor, "views 3 height width"] | UInt8[Tensor, "views 3 height width"],
    pipeline: Sequence[OperationBase],
    seeds: Int64[Tensor, " views"],
    patch_size: int,
) -> Float[Tensor, "views 3 height width"]:
    """Apply a pipeline to a batch of views, every step drawn per view or per cell of the token grid.

    Args:
        pixels: floats in [0, 1], or uint8, which is divided by 255 on the way.
        pipeline: operations in order.
        seeds: one 64-bit seed a view; the only source of randomness.
        patch_size: side of a cell in pixels, for `unit="patch"`.

    Raises:
        ConfigError: when an operation works per patch and `patch_size` doesn't divide the views.

    >>> from glocal.views.photometric.tone import Invert
    >>> apply_pipeline(torch.zeros(2, 3, 8, 8), [Invert()], torch.tensor([1, 2]), patch_size=4).mean().item()
    1.0
    """
    steps = draw_steps(pipeline, seeds, patch_size, (pixels.shape[2], pixels.shape[3]))
    out = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
    for views in pieces(pixels):
        out[views] = run_steps(steps, pixels[views], views, patch_size)
    return out


def draw_steps(
    pipeline: Sequence[OperationBase], seeds: Int64[Tensor, " views"], patch_size: int, size: tuple[int, int]
) -> list[Step]:
    """Draw the parameters of all views of `size` (height, width); neighbouring colour maps become one step.

    Raises:
        ConfigError: see `apply_pipeline`.
    """
    cells = _cells(patch_size, *size) if any(op.unit == "patch" for op in pipeline) else 0
    steps: list[Step] = []
    for (unit, seen_by, fuses), members in itertools.groupby(enumerate(pipeline), key=_kind):
        drawn = [(operation, *_draw(operation, fold_in(seeds, k), cells)) for k, operation in members]
        if fuses:
            applies = [_apply_colours(drawn)]
        else:
            applies = [functools.partial(_apply_operation, *one) for one in drawn]
        steps += [Step(unit, seen_by, apply) for apply in applies]
    return steps


def run_steps(steps: Sequence[Step], pixels: Tensor, views: slice, patch_size: int) -> Pixels:
    """Apply steps to some of the views that they were drawn for. Leaves `pixels` alone.

    Steps with `unit="patch"` see the cells of the token grid as units: folded into the batch before the first of them,
    unfolded after the last.
    """
    changed = pixels.float()
    changed = changed.mul_(1 / 255) if pixels.dtype == torch.uint8 else changed.clone()
    for unit, stage in itertools.groupby(steps, key=lambda step: step.unit):
        units, of = changed, views
        if unit == "patch":
            units = fold_cells(changed, patch_size)
            count = units.shape[0] // max(1, len(changed))
            of = slice(views.start * count, views.stop * count)
        for step in stage:
            units = step.apply(units, of)
        changed = unfold_cells(units, *pixels.shape[2:]) if unit == "patch" else units
    return changed


def run_for_both(
    steps: Sequence[Step], pixels: Tensor, views: slice, patch_size: int
) -> tuple[Pixels, Pixels | None]:
    """What the student sees of some views, and the teacher, for whom steps with `seen_by="student"` are left out.

    None for the teacher when both see the same. What comes before the first student-only step is computed once.
    """
    shared = next((i for i, step in enumerate(steps) if step.seen_by == "student"), len(steps))
    both = run_steps(steps[:shared], pixels, views, patch_size)
    if shared == len(steps):
        return both, None
    for_teacher = [step for step in steps[shared:] if step.seen_by == "both"]
    teacher = run_steps(for_teacher, both, views, patch_size) if for_teacher else both
    return run_steps(steps[shared:], both, views, patch_size), teacher


def pieces(pixels: Tensor) -> Iterator[slice]:
    """Cut a batch into views that a CPU core changes together, so that all steps find them in its cache."""
    views, channels, height, width = pixels.shape
    size = max(1, PIECE_BYTES // (4 * channels * height * width)) if pixels.device.type == "cpu" else views
    return (slice(start, min(start + size, views)) for start in range(0, views, max(1, size)))


def fold_cells(pixels: Pixels, patch_size: int) -> Float[Tensor, "cells 3 patch patch"]:
    """Make every cell of the token grid a unit of its own: (views, 3, H, W) to (views * rows * columns, 3, p, p)."""
    views, channels, height, width = pixels.shape
    grid = pixels.reshape(views, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, patch_size, patch_size)


def unfold_cells(cells: Float[Tensor, "cells 3 patch patch"], height: int, width: int) -> Pixels:
    """Put units made by `fold_cells` back together to pictures of `height` x `width` pixels."""
    patch_size = cells.shape[-1]
    grid = cells.view(-1, height // patch_size, width // patch_size, 3, patch_size, patch_size)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, height, width)


def _cells(patch_size: int, height: int, width: int) -> int:
    """Cells of a view's token grid."""
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ConfigError(
            f"An operation with unit: patch needs views that the patch size divides, but {height}x{width} "
            f"pixels are no multiple of patch_size {patch_size}. Change the view group's size or the backbone's patch_size."
        )
    return (height // patch_size) * (width // patch_size)


def _kind(numbered: tuple[int, OperationBase]) -> tuple[str, str, bool]:
    """What neighbouring operations must share to become one step."""
    operation = numbered[1]
    return operation.unit, operation.seen_by, operation.fuses


_Drawn = tuple[OperationBase, Bool[Tensor, " units"], Float[Tensor, "units _"]]


def _draw(
    operation: OperationBase, seeds: Int64[Tensor, " views"], cells: int
) -> tuple[Bool[Tensor, " units"], Float[Tensor, "units draws"]]:
    """Draw the coin and the parameters of every unit."""
    if operation.unit == "patch":
        numbers = torch.arange(cells, device=seeds.device)
        seeds = fold_in(seeds[:, None], numbers).flatten()
    drawn = uniforms(seeds, 1 + operation.draws)
    return drawn[:, 0] < operation.probability, drawn[:, 1:]


def _apply_operation(
    operation: OperationBase,
    chosen: Bool[Tensor, " all_units"],
    draws: Float[Tensor, "all_units draws"],
    pixels: Pixels,
    units: slice,
) -> Pixels:
    return operation.transform_chosen(pixels, draws[units], chosen[units])


def _apply_colours(drawn: Sequence[_Drawn]) -> Apply:
    """Compose the colour maps of neighbouring operations; the identity for units that no coin chose."""
    maps = [
        operation.colour_map(draws).where(chosen)
        for operation, chosen, draws in drawn
        if isinstance(operation, ColorJitter | Grayscale)
    ]
    colours = functools.reduce(ColourMap.then, maps)
    matrix = colours.matrix()
    return lambda pixels, units: apply_colour_matrix(
        pixels, matrix[units], colours.mean_gain[units], out=pixels
    )
