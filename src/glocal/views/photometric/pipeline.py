"""Running a pipeline on a batch of views: draw everything, group the steps, fold cells into the batch.

Randomness: view i has seed s; the operation at position k of the pipeline has seed `fold_in(s, k)`, and with
`unit="patch"` its cell c (row-major) has `fold_in(fold_in(s, k), c)`. Uniform 0 is the coin of `probability`, the
others the parameters. Nothing depends on the batch, and leaving out a step changes no other step's draws.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from glocal.errors import ConfigError
from glocal.views.photometric.colour import ColorJitter, ColourMap, Grayscale, apply_colour_matrix
from glocal.views.photometric.operation import PIECE_BYTES, OperationBase, Pixels
from glocal.views.randomness import fold_in, uniforms


@dataclass(frozen=True)
class _Step:
    """An operation with what was drawn for every unit of the batch."""

    operation: OperationBase
    chosen: Bool[Tensor, " units"]
    draws: Float[Tensor, "units draws"]

    def apply(self, pixels: Pixels, units: slice) -> Pixels:
        """Apply to the units that `pixels` holds; may overwrite them."""
        return self.operation.transform_chosen(pixels, self.draws[units], self.chosen[units])


@dataclass(frozen=True)
class _ColourStep(_Step):
    """One colour map, or several neighbouring ones composed; the identity for units that no coin chose."""

    colours: ColourMap

    @functools.cached_property
    def matrix(self) -> Float[Tensor, "units 3 3"]:
        return self.colours.matrix()

    def apply(self, pixels: Pixels, units: slice) -> Pixels:
        return apply_colour_matrix(pixels, self.matrix[units], self.colours.mean_gain[units], out=pixels)

    def then(self, after: _ColourStep) -> _ColourStep:
        return _ColourStep(after.operation, after.chosen, after.draws, self.colours.then(after.colours))


@dataclass(frozen=True)
class _Stage:
    """Consecutive operations with the same unit and the same audience."""

    unit: str
    seen_by: str
    steps: tuple[_Step, ...]

    @property
    def whole_batch(self) -> bool:
        """True for a lone step that gains from seeing all views at once."""
        return self.unit == "image" and self.steps[0].operation.prefers_whole_batch


def apply_pipeline(
    pixels: Float[Tensor, "views 3 height width"] | UInt8[Tensor, "views 3 height width"],
    pipeline: Sequence[OperationBase],
    seeds: Int64[Tensor, " views"],
    patch_size: int,
) -> Float[Tensor, "views 3 height width"]:
    """Apply a pipeline to a batch of views, every step drawn per view or per cell of the token grid.

    Args:
        pixels: floats in [0, 1], or uint8, which is divided by 255 on the way (cheaper than doing so before).
        pipeline: operations in order.
        seeds: one 64-bit seed a view; the only source of randomness.
        patch_size: side of a cell in pixels, for `unit="patch"`.

    Raises:
        ConfigError: when an operation works per patch and `patch_size` doesn't divide the views.

    >>> from glocal.views.photometric.tone import Invert
    >>> apply_pipeline(torch.zeros(2, 3, 8, 8), [Invert()], torch.tensor([1, 2]), patch_size=4).mean().item()
    1.0
    """
    return _run(_plan(pixels, pipeline, seeds, patch_size), pixels, patch_size)


def apply_pipeline_both(
    pixels: Float[Tensor, "views 3 height width"] | UInt8[Tensor, "views 3 height width"],
    pipeline: Sequence[OperationBase],
    seeds: Int64[Tensor, " views"],
    patch_size: int,
) -> tuple[Float[Tensor, "views 3 height width"], Float[Tensor, "views 3 height width"] | None]:
    """Apply a pipeline for the student, and for the teacher without the operations with `seen_by="student"`.

    Returns the student's pixels, equal to those of `apply_pipeline`, and the teacher's, or None when both see the same.
    What comes before the first student-only operation is computed once.
    """
    stages = _plan(pixels, pipeline, seeds, patch_size)
    shared = next((i for i, stage in enumerate(stages) if stage.seen_by == "student"), len(stages))
    if shared == len(stages):
        return _run(stages, pixels, patch_size), None
    prefix = _run(stages[:shared], pixels, patch_size)
    for_teacher = [stage for stage in stages[shared:] if stage.seen_by == "both"]
    teacher = _run(for_teacher, prefix, patch_size) if for_teacher else prefix
    return _run(stages[shared:], prefix, patch_size), teacher


def fold_cells(pixels: Pixels, patch_size: int) -> Float[Tensor, "cells 3 patch patch"]:
    """Make every cell of the token grid a unit of its own: (views, 3, H, W) to (views * rows * columns, 3, p, p)."""
    views, channels, height, width = pixels.shape
    grid = pixels.reshape(views, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, patch_size, patch_size)


def unfold_cells(cells: Float[Tensor, "cells 3 patch patch"], out: Pixels) -> Pixels:
    """Write units made by `fold_cells` back into pictures of the shape of `out`, and return `out`."""
    patch_size = cells.shape[-1]
    views, channels, height, width = out.shape
    grid = cells.view(views, height // patch_size, width // patch_size, channels, patch_size, patch_size)
    target = out.view(views, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    target.copy_(grid.permute(0, 3, 1, 4, 2, 5))
    return out


def _plan(pixels: Tensor, pipeline: Sequence[OperationBase], seeds: Tensor, patch_size: int) -> list[_Stage]:
    """Draw all parameters of the batch and group consecutive steps into stages."""
    height, width = pixels.shape[-2:]
    cells = 0
    if any(operation.unit == "patch" for operation in pipeline):
        if patch_size < 1 or height % patch_size or width % patch_size:
            raise ConfigError(
                f"An operation with unit: patch needs views that the patch size divides, but {height}x{width} "
                f"pixels are no multiple of patch_size {patch_size}. Change the view group's size or the backbone's patch_size."
            )
        cells = (height // patch_size) * (width // patch_size)
    stages: list[_Stage] = []
    for position, operation in enumerate(pipeline):
        step = _draw(operation, fold_in(seeds, position), cells)
        stage = _Stage(operation.unit, operation.seen_by, (step,))
        last = stages[-1] if stages else stage
        together = (last.unit, last.seen_by) == (stage.unit, stage.seen_by)
        if stages and together and not (last.whole_batch or stage.whole_batch):
            stages[-1] = _Stage(last.unit, last.seen_by, _append(last.steps, step))
        else:
            stages.append(stage)
    return stages


def _draw(operation: OperationBase, seeds: Int64[Tensor, " views"], cells: int) -> _Step:
    """Draw the coin and the parameters of every unit."""
    if operation.unit == "patch":
        numbers = torch.arange(cells, device=seeds.device)
        seeds = fold_in(seeds[:, None], numbers).flatten()
    drawn = uniforms(seeds, 1 + operation.draws)
    chosen, draws = drawn[:, 0] < operation.probability, drawn[:, 1:]
    colours = operation.colour_map(draws) if isinstance(operation, ColorJitter | Grayscale) else None
    if colours is None:
        return _Step(operation, chosen, draws)
    return _ColourStep(operation, chosen, draws, colours.where(chosen))


def _append(steps: tuple[_Step, ...], step: _Step) -> tuple[_Step, ...]:
    """Add a step to a stage, composing neighbouring colour maps."""
    before = steps[-1]
    if isinstance(before, _ColourStep) and isinstance(step, _ColourStep):
        return (*steps[:-1], before.then(step))
    return (*steps, step)


def _run(stages: Sequence[_Stage], pixels: Tensor, patch_size: int) -> Tensor:
    """Run stages one after another on new memory, piece by piece where that keeps the data in the cache."""
    views, _, height, width = pixels.shape
    piece = max(1, PIECE_BYTES // (12 * height * width)) if pixels.device.type == "cpu" else max(1, views)
    out = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
    source = pixels
    if not stages or stages[0].whole_batch:
        source = _to_float(pixels, out)
    for stage in stages:
        if stage.whole_batch:
            out = stage.steps[0].apply(out, slice(None))
        else:
            for start in range(0, views, piece):
                here = slice(start, start + piece)
                _run_piece(stage, _to_float(source[here], out[here]), here, patch_size)
        source = out
    return out


def _run_piece(stage: _Stage, pixels: Pixels, views: slice, patch_size: int) -> None:
    """Run a stage on some views, in place."""
    if stage.unit == "image":
        part, units = pixels, views
    else:
        part = fold_cells(pixels, patch_size)
        cells = part.shape[0] // pixels.shape[0]
        units = slice(views.start * cells, views.stop * cells)
    for step in stage.steps:
        part = step.apply(part, units)
    if part.data_ptr() == pixels.data_ptr():
        return  # in place already: one whole view, or cells that are a mere view of it (a grid of one column)
    if stage.unit == "patch":
        unfold_cells(part, pixels)
    else:
        pixels.copy_(part)


def _to_float(pixels: Tensor, out: Tensor) -> Tensor:
    """Copy into `out` as floats in [0, 1], unless `pixels` is `out`."""
    if pixels.data_ptr() == out.data_ptr():
        return out
    out.copy_(pixels)
    return out.mul_(1 / 255) if pixels.dtype == torch.uint8 else out
