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
    if (rows, columns) == grid:
        return table
    down = _resampling_matrix(rows, grid[0], antialias, offset, table.device)
    across = _resampling_matrix(columns, grid[1], antialias, offset, table.device)
    with torch.autocast(table.device.type, enabled=False):
        return torch.einsum("hr,rcd,wc->hwd", down, table.float(), across).to(table.dtype)


@functools.lru_cache(maxsize=256)
def _resampling_matrix(
    source: int, target: int, antialias: bool, offset: float, device: torch.device
) -> Float[Tensor, "target source"]:
    """The matrix of one axis, read off by resampling the identity."""
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


@functools.lru_cache(maxsize=256)
def rotary_table(
    grid: tuple[int, int], head_dim: int, prefix: int, base: float, device: torch.device
) -> tuple[Float[Tensor, "tokens head_dim"], Float[Tensor, "tokens head_dim"]]:
    """Cosines and sines of axial rotary embeddings for `prefix` unrotated tokens and then the patches, row-major.

    Siméoni et al. 2025 (DINOv3): patch centres in [-1, 1] on each axis separately; a quarter of the head's dimensions
    holds the frequencies 2 pi / base**(2 i / (head_dim / 2)) of the row, the next quarter those of the column, and
    the second half repeats the first.
    """
    with torch.inference_mode(False), torch.no_grad():
        quarter = head_dim // 4
        frequencies = 2 * math.pi / base ** (torch.arange(quarter, dtype=torch.float32) / quarter)
        rows, columns = (2 * (torch.arange(n, dtype=torch.float32) + 0.5) / n - 1 for n in grid)
        centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2, 1)
        angles = (centres * frequencies).flatten(1).repeat(1, 2)
        angles = torch.cat([angles.new_zeros(prefix, head_dim), angles])
        return angles.cos().to(device), angles.sin().to(device)


def rotate(
    x: Float[Tensor, "*batch tokens head_dim"],
    table: tuple[Float[Tensor, "*#batch tokens head_dim"], Float[Tensor, "*#batch tokens head_dim"]],
) -> Float[Tensor, "*batch tokens head_dim"]:
    """Turn each pair (x_i, x_{i + head_dim/2}) by its token's angle."""
    cosine, sine = table
    first, second = x.chunk(2, dim=-1)
    return (x * cosine + torch.cat([-second, first], dim=-1) * sine).to(x.dtype)
