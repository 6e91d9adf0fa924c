"""Where a patch lies: position tables resampled to any grid, and axial rotary embeddings."""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def resample_table(
    table: Float[Tensor, "rows columns dim"],
    grid: tuple[int, int],
    *,
    antialias: bool = True,
    offset: float = 0.0,
) -> Float[Tensor, "new_rows new_columns dim"]:
    """Resize a position table bicubically, half-pixel centres, as `torch.nn.functional.interpolate` does.

    `offset` is added to the target size where the scale is computed; DINO and the first DINOv2 weights were trained
    with 0.1 and no antialiasing, timm and DINOv2 with registers use antialiasing and no offset.

    Bicubic resampling is linear and separable, so it runs as two small matrix products with cached matrices: its
    backward is deterministic on every device, and nothing goes stale when the table is trained.

    >>> resample_table(torch.randn(14, 14, 64), (6, 9)).shape
    torch.Size([6, 9, 64])
    """
    rows, columns, _ = table.shape
    if torch.compiler.is_exporting():
        down, across = (
            resampling_weights(old, new, antialias, offset)
            for old, new in zip((rows, columns), grid, strict=True)
        )
        return torch.einsum("hr,rcd,wc->hwd", down, table, across)
    if (rows, columns) == grid:
        return table
    down = _resampling_matrix(rows, grid[0], antialias, offset, table.device)
    across = _resampling_matrix(columns, grid[1], antialias, offset, table.device)
    with torch.autocast(table.device.type, enabled=False):
        return torch.einsum("hr,rcd,wc->hwd", down, table.float(), across).to(table.dtype)


def _resampling_matrix(
    source: int, target: int, antialias: bool, offset: float, device: torch.device
) -> Float[Tensor, "target source"]:
    """The matrix of one axis, read off by resampling the identity; kept for the sizes seen last."""
    return _made_resampling_matrix(source, target, antialias, offset, device)


@functools.lru_cache(maxsize=256)
def _made_resampling_matrix(
    source: int, target: int, antialias: bool, offset: float, device: torch.device
) -> Float[Tensor, "target source"]:
    # A tensor born in inference mode could not be saved for a later backward pass.
    with torch.inference_mode(False), torch.no_grad():
        # Two rows: PyTorch 2.13 takes a batch of single columns for channels-last and resamples it wrongly.
        identity = torch.eye(source)[None, :, None, :].repeat(1, 1, 2, 1)
        if offset:
            # The scale is what counts; the size comes out right because offset < 1.
            scale = (1.0, (target + offset) / source)
            resized = F.interpolate(identity, scale_factor=scale, mode="bicubic", antialias=antialias)
        else:
            resized = F.interpolate(identity, size=(2, target), mode="bicubic", antialias=antialias)
        return resized[0, :, 0].T.contiguous().to(device)


def resampling_weights(
    source: int, target: int, antialias: bool, offset: float
) -> Float[Tensor, "target source"]:
    """The same matrix written out, for programs that leave torch: `target` may be a symbol that is known when they run.

    Keys' cubic kernel at half-pixel centres: a = -0.75 and repeated edges without antialiasing; with it a = -0.5, as
    wide as the step between targets, and edges renormalised. A table of the same size stays as it is.
    """
    count = torch.ones(target).sum()
    same = count == source
    scale = torch.where(same, 1.0, source / (count + offset))
    centre = (torch.arange(target) + 0.5) * scale - 0.5
    places = torch.arange(source, dtype=torch.float32)
    if antialias:
        weights = _cubic((places - centre[:, None]) / scale.clamp_min(1.0), -0.5)
        return weights / weights.sum(dim=1, keepdim=True)
    first = centre.floor()
    total = torch.zeros(1)
    for step in (-1, 0, 1, 2):
        place = (first + step).clamp(0, source - 1)
        weight = _cubic(centre - first - step, -0.75)
        total = total + (places == place[:, None]) * weight[:, None]
    return total


def _cubic(x: Tensor, a: float) -> Tensor:
    """Keys' kernel."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


def rotary_table(
    grid: tuple[int, int], head_dim: int, prefix: int, base: float, device: torch.device
) -> tuple[Float[Tensor, "tokens head_dim"], Float[Tensor, "tokens head_dim"]]:
    """`rotary_angles`' cosines and sines, kept for the grids seen last."""
    if torch.compiler.is_exporting():
        angles = rotary_angles(grid, head_dim, prefix, base)
        return angles.cos(), angles.sin()
    cosines, sines = _kept_rotary_table(grid, head_dim, prefix, base, device).unbind(0)
    return cosines, sines


def _kept_rotary_table(
    grid: tuple[int, int], head_dim: int, prefix: int, base: float, device: torch.device
) -> Float[Tensor, "2 tokens head_dim"]:
    """Cosines and sines in one tensor, as a compiler's constant must be."""
    return _made_rotary_table(grid, head_dim, prefix, base, device)


@functools.lru_cache(maxsize=256)
def _made_rotary_table(
    grid: tuple[int, int], head_dim: int, prefix: int, base: float, device: torch.device
) -> Float[Tensor, "2 tokens head_dim"]:
    # A tensor born in inference mode could not be saved for a later backward pass.
    with torch.inference_mode(False), torch.no_grad():
        angles = rotary_angles(grid, head_dim, prefix, base)
        return torch.stack([angles.cos(), angles.sin()]).to(device)


def make_tables_constant() -> None:
    """Tell torch.compile that these tables depend on sizes only. Loads the compiler, hence not at import."""
    for table in (_resampling_matrix, _kept_rotary_table):
        torch.compiler.assume_constant_result(table)


def rotary_angles(
    grid: tuple[int, int], head_dim: int, prefix: int, base: float
) -> Float[Tensor, "tokens head_dim"]:
    """Angles of axial rotary embeddings for `prefix` unrotated tokens and then the patches, row-major.

    Siméoni et al. 2025 (DINOv3): patch centres in [-1, 1] on each axis separately; a quarter of the head's dimensions
    holds the frequencies 2 pi / base**(2 i / (head_dim / 2)) of the row, the next quarter those of the column, and
    the second half repeats the first.
    """
    quarter = head_dim // 4
    frequencies = 2 * math.pi / base ** (torch.arange(quarter, dtype=torch.float32) / quarter)
    rows, columns = (2 * (torch.arange(n, dtype=torch.float32) + 0.5) / n - 1 for n in grid)
    centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2, 1)
    angles = (centres * frequencies).flatten(1).repeat(1, 2)
    return torch.cat([angles.new_zeros(prefix, head_dim), angles])


def rotate(
    x: Float[Tensor, "*batch tokens head_dim"],
    table: tuple[Float[Tensor, "*#batch tokens head_dim"], Float[Tensor, "*#batch tokens head_dim"]],
) -> Float[Tensor, "*batch tokens head_dim"]:
    """Turn each pair (x_i, x_{i + head_dim/2}) by its token's angle."""
    cosine, sine = table
    first, second = x.chunk(2, dim=-1)
    return (x * cosine + torch.cat([-second, first], dim=-1) * sine).to(x.dtype)
