"""For every patch the most similar patches around it (SelfPatch, Yun et al., CVPR 2022: positive matching)."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from glocal.errors import ConfigError, DataError, nearest_name

Border = Literal["clip", "torus"]
Grid = tuple[int, int]

BORDERS: tuple[Border, ...] = ("clip", "torus")


class SimilarPatches(NamedTuple):
    """The chosen patches, most similar first. Where `valid` is False there is none: the patch itself, similarity 0."""

    patch: Int64[Tensor, "batch patches k"]
    valid: Bool[Tensor, "batch patches k"]
    similarity: Float[Tensor, "batch patches k"]


@torch.no_grad()
def similar_patches(
    tokens: Float[Tensor, "batch patches dim"],
    grid: Grid,
    k: int,
    window: int = 3,
    border: Border = "clip",
    include_self: bool = False,
) -> SimilarPatches:
    """Choose for every patch the `k` patches of its window with the largest cosine similarity.

    With border `clip` only patches that lie inside the grid are candidates, so a corner of a 3x3 window has three and
    its other places are invalid: attend to the valid ones. Border `torus` is the reference's, which takes positions
    modulo the grid's sides and so reaches across to the opposite border. Equal similarities are taken in row-major
    order of the window. Similarities are computed in float32 whatever the tokens' type; no gradient flows. The
    candidates' tokens are never copied.

    Args:
        tokens: patch tokens, row-major on `grid`. The reference matches on the teacher's last block before any norm.
        grid: (rows, columns).
        k: how many to choose (4 in the reference).
        window: side of the square window in patches, odd, at most the grid's shorter side.
        border: `clip` or `torus`.
        include_self: whether a patch may choose itself (the reference excludes it).

    Raises:
        ConfigError: for an unknown border, a window that is even or larger than the grid, a `k` below 1 or larger than
            the window has candidates.
        DataError: for tokens that are not (batch, rows * columns, dim).

    >>> similar_patches(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]] * 3]), (3, 3), k=1).patch[0, 4].item()
    1
    """
    _check(tokens, grid, k, window, border, include_self)
    layout = _layout(grid, window, include_self, border == "torus", tokens.device)
    unit = F.normalize(tokens.float(), dim=-1)
    with torch.autocast(tokens.device.type, enabled=False):
        products = _row_products(unit, grid, window // 2, border == "torus")
    similarity = products.gather(1, layout.product.flatten().expand(len(tokens), -1)).view(
        -1, *layout.product.shape
    )
    # A stable sort over the few candidates, because topk leaves the order of equal values open.
    similarity, order = similarity.masked_fill(~layout.inside, -torch.inf).sort(
        dim=-1, descending=True, stable=True
    )
    similarity, order = similarity[..., :k], order[..., :k]
    patch = layout.patch.expand(len(tokens), -1, -1).gather(-1, order)
    valid = layout.inside.expand(len(tokens), -1, -1).gather(-1, order)
    return SimilarPatches(patch, valid, similarity.masked_fill(~valid, 0.0))


class _Layout(NamedTuple):
    """The candidates of every patch, all (patches, candidates): number, whether inside, place among the products."""

    patch: Tensor
    inside: Tensor
    product: Tensor


def _row_products(unit: Tensor, grid: Grid, reach: int, torus: bool) -> Tensor:
    """Products of each row's tokens with those of the same row and of the `reach` rows below: (batch, all products).

    A window never leaves its 2 * reach + 1 rows and similarity is symmetric, so this band of the patches x patches
    matrix holds every candidate. On two CPU cores it took half the whole matrix's time at 14x14 patches and an eighth
    at 28x28; against products of shifted maps 0.1 to 1.5 times at window 3 (the worst at 56x56) and half or less at
    window 5. So there is one way for all grids; benchmarks/bench_matching.py has the other two.
    """
    rows, columns = grid
    batch, _, dim = unit.shape
    upper = unit.reshape(batch * rows, columns, dim)
    products = unit.new_empty(reach + 1, batch * rows, columns, columns)
    for down in range(reach + 1):
        if torus and down:
            lower = unit.view(batch, rows, columns, dim).roll(-down, 1).view(batch * rows, columns, dim)
        else:
            # The last rows of an image meet the first ones of the next; clipped windows never look there.
            lower = upper[down:]
        torch.bmm(upper[: len(lower)], lower.transpose(1, 2), out=products[down, : len(lower)])
    return products.view(reach + 1, batch, -1).transpose(0, 1).reshape(batch, -1)


@lru_cache(maxsize=32)
def _layout(grid: Grid, window: int, include_self: bool, torus: bool, device: torch.device) -> _Layout:
    """Where every patch's candidates lie; made once for a grid and kept on the device."""
    rows, columns = grid
    reach = range(-(window // 2), window // 2 + 1)
    offset = torch.tensor([(d, r) for d in reach for r in reach if include_self or (d, r) != (0, 0)]).view(
        -1, 2
    )
    down, right = offset.unbind(1)
    patch = torch.arange(rows * columns)[:, None].expand(-1, len(offset))
    row, column = patch // columns, patch % columns
    other_row, other_column = row + down, column + right
    inside = (other_row >= 0) & (other_row < rows) & (other_column >= 0) & (other_column < columns)
    if torus:
        inside = torch.ones_like(inside)
    other_row = torch.where(inside, other_row % rows, row)
    other_column = torch.where(inside, other_column % columns, column)
    # Of both orders of a pair one product is read, so that similarity is symmetric to the last bit.
    first = (down > 0) | ((down == 0) & (column <= other_column))
    place = torch.where(inside, down.abs(), 0) * rows + torch.where(first, row, other_row)
    place = place * columns + torch.where(first, column, other_column)
    place = place * columns + torch.where(first, other_column, column)
    return _Layout((other_row * columns + other_column).to(device), inside.to(device), place.to(device))


def _check(tokens: Tensor, grid: Grid, k: int, window: int, border: str, include_self: bool) -> None:
    if border not in BORDERS:
        raise ConfigError(
            f"border '{border}' is unknown.{nearest_name(str(border), BORDERS)} Allowed: {', '.join(BORDERS)}."
        )
    if window < 1 or window % 2 == 0:
        raise ConfigError(f"window is {window}; it must be odd (1, 3, 5, ...) so that it has a centre.")
    if window > min(grid):
        raise ConfigError(
            f"window {window} is larger than the grid {grid[0]}x{grid[1]} of patches. "
            f"Use a window of at most {min(grid) - (min(grid) + 1) % 2}, larger views or smaller patches."
        )
    candidates = window * window - (not include_self)
    if not 1 <= k <= candidates:
        raise ConfigError(
            f"k is {k}, but a {window}x{window} window has {candidates} candidates "
            f"({'with' if include_self else 'without'} the patch itself). Use 1 to {candidates}, or a larger window."
        )
    if tokens.dim() != 3 or tokens.shape[1] != grid[0] * grid[1]:
        raise DataError(
            f"tokens have shape {tuple(tokens.shape)}; a {grid[0]}x{grid[1]} grid needs (batch, {grid[0] * grid[1]}, "
            "dim). Leave out the class token, and take a backbone that gives patch tokens."
        )
