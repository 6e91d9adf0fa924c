"""Matching on one axis: rows and columns of two views are paired independently, and here is how.

Everything is float64 and batched: starts and lengths have shape (*pairs, 1), cells (*pairs, cells). "Source order"
counts a view's cells as the source image shows them (left to right whatever the flip); a mirrored view's own grid
counts the other way. Each position takes one division, so that integer boxes give the same cell on every device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Side(NamedTuple):
    """One axis of one view: where it starts and how long it is in source pixels, its cells, whether it is mirrored."""

    start: Tensor
    length: Tensor
    flip: Tensor | None
    cells: int

    @property
    def step(self) -> Tensor:
        """Length of a cell in source pixels."""
        return self.length / self.cells


class Cells(NamedTuple):
    """For every cell of b, in the order of its grid: the cell of a that it belongs to, -1 where there is none, and the
    length in source pixels that the two share, 0 where there is none.
    """

    cell: Tensor
    overlap: Tensor


def center_axis(a: Side, b: Side) -> Cells:
    """Give every cell of b the cell of a that contains its centre."""
    source_b, position = _position(a, b)
    source_a = position.floor()
    matched = (position >= 0) & (position < a.cells)
    overlap = _shared_length(a, source_a, b, source_b)
    return Cells(torch.where(matched, _mirror(a, source_a), -1).long(), torch.where(matched, overlap, 0.0))


def paper_axis(a: Side, b: Side) -> Cells:
    """Round the common stretch to whole cells on each side and pair them, sub-sampling the longer run (section 2)."""
    start = torch.maximum(a.start, b.start)
    extent = torch.minimum(a.start + a.length, b.start + b.length) - start
    first_a, size_a = _rounded_run(a, start, extent)
    first_b, size_b = _rounded_run(b, start, extent)
    size = torch.minimum(size_a, size_b)
    rank = torch.arange(min(a.cells, b.cells), device=start.device, dtype=start.dtype)
    source_a = first_a + _sample(size_a, size, rank)
    source_b = first_b + _sample(size_b, size, rank)
    # Ranks beyond the run are written to one cell too many, which is cut off again.
    slot = torch.where(rank < size, _mirror(b, source_b), b.cells).long()
    shape = (*slot.shape[:-1], b.cells + 1)
    cell = torch.full(shape, -1, device=slot.device).scatter(-1, slot, _mirror(a, source_a).long())
    overlap = _shared_length(a, source_a, b, source_b)
    return Cells(cell[..., :-1], overlap.new_zeros(shape).scatter(-1, slot, overlap)[..., :-1])


def _rounded_run(side: Side, start: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
    """First cell, in source order, and number of cells of a view's rounded share of the common stretch."""
    count = (side.cells * extent / side.length).round()
    first = (side.cells * (start - side.start) / side.length).round()
    # Two exact halves can both round up, and the run then ends one cell beyond the grid. The reference selects with
    # array slices, which cut such a run short; under flip its start becomes -1, which selects nothing.
    beyond = first + count > side.cells
    size = torch.where(beyond, side.cells - first, count)
    if side.flip is not None:
        size = torch.where(beyond & side.flip, 0, size)
    return first, torch.where(extent > 0, size.clamp(min=0), 0)


def _sample(available: Tensor, wanted: Tensor, rank: Tensor) -> Tensor:
    """Element `rank` of floor(linspace(0, available - 1, wanted)), in NumPy's arithmetic: the last one is exact."""
    step = (available - 1) / (wanted - 1).clamp(min=1)
    last = (rank == wanted - 1) & (wanted > 1)
    return torch.where(last, available - 1, (rank * step).floor())


def _position(a: Side, b: Side) -> tuple[Tensor, Tensor]:
    """Number of each cell of b in source order, and where its centre lies on a, counted in a's cells."""
    cell = torch.arange(b.cells, device=b.start.device, dtype=b.start.dtype)
    source = _mirror(b, cell.expand(*b.start.shape[:-1], b.cells))
    numerator = a.cells * (2 * b.cells * (b.start - a.start) + (2 * source + 1) * b.length)
    return source, numerator / (2 * b.cells * a.length)


def bilinear_axis(a: Side, b: Side) -> tuple[Tensor, Tensor]:
    """Two cells of a around the centre of every cell of b, and their weights, which are 0 outside a."""
    _, position = _position(a, b)
    inside = (position >= 0) & (position < a.cells)
    lower = (position - 0.5).floor()
    share = position - 0.5 - lower
    cells = torch.stack([lower, lower + 1], dim=-1).clamp(0, a.cells - 1)
    if a.flip is not None:
        cells = torch.where(a.flip[..., None], a.cells - 1 - cells, cells)
    return cells.long(), torch.stack([1 - share, share], dim=-1) * inside[..., None]


def _mirror(side: Side, cell: Tensor) -> Tensor:
    """Turn source order into the order of the view's own grid, or back."""
    return cell if side.flip is None else torch.where(side.flip, side.cells - 1 - cell, cell)


def _shared_length(a: Side, source_a: Tensor, b: Side, source_b: Tensor) -> Tensor:
    """Length in source pixels that cells of the two views have in common."""
    low = torch.maximum(a.start + source_a * a.step, b.start + source_b * b.step)
    high = torch.minimum(a.start + (source_a + 1) * a.step, b.start + (source_b + 1) * b.step)
    return (high - low).clamp(min=0)


def limit_scale(cells: Cells, a: Side, b: Side, limit: float) -> Cells:
    """Match nothing on an axis on which the two views' cells differ in length by more than `limit` times."""
    close = torch.maximum(a.step, b.step) <= limit * torch.minimum(a.step, b.step)
    return Cells(torch.where(close, cells.cell, -1), torch.where(close, cells.overlap, 0.0))
