"""Matrices of features that are larger than memory should hold: mapped from a file without a name, float16 if allowed.

A mapped matrix is an ordinary tensor. Its file, which lies in the folder for temporary files (TMPDIR), vanishes with it;
`release` hands pages back to the system after each portion, so that what a process holds stays a portion.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from glocal.errors import DataError, ModelError

MAPPED_FROM = 2**30
"""Bytes from which a matrix is mapped."""
HALF_FROM = 2**31
"""Bytes in float32 from which features are held in float16 where a protocol allows it (its result says so)."""
CHUNK = 16_384
"""Rows that are converted or multiplied at once."""


def allocate(
    rows: int, columns: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Float[Tensor, "rows columns"]:
    """A matrix to be written: on a GPU, in memory or, from 1 GiB on, mapped.

    Raises:
        DataError: when the disk has no room for it.

    >>> allocate(2, 3).shape
    torch.Size([2, 3])
    """
    size = rows * columns * dtype.itemsize
    if size < MAPPED_FROM or (device is not None and device.type != "cpu"):
        return torch.empty(rows, columns, dtype=dtype, device=device)
    handle, path = tempfile.mkstemp(prefix="glocal-features-")
    try:
        # Room is taken here: a full disk met at a write into a mapping would kill the process. macOS has no such call.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        return torch.from_file(path, shared=True, size=rows * columns, dtype=dtype).view(rows, columns)
    except OSError as error:
        folder = tempfile.gettempdir()
        raise DataError(
            f"{size / 2**30:.1f} GiB of features don't fit into {folder}: {error}. Set TMPDIR to a folder with room."
        ) from error
    finally:
        os.close(handle)
        Path(path).unlink()


def release(matrix: Float[Tensor, "rows columns"]) -> None:
    """Hand the pages of these rows of a mapped matrix back to the system; they are read again when they are used again.

    Nothing is lost: what was written is in the file. Other matrices are left alone. Costs a tenth of a second a GiB touched.
    """
    if matrix.untyped_storage().filename is None or not matrix.numel():
        return
    last = (len(matrix) - 1) * matrix.stride(0) + (matrix.shape[1] - 1) * matrix.stride(1) + 1
    start, end = matrix.data_ptr(), matrix.data_ptr() + last * matrix.element_size()
    start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: others belong to rows around
    if end - start >= mmap.PAGESIZE:
        whole = (end - start) // mmap.PAGESIZE * mmap.PAGESIZE
        _C_LIBRARY.madvise(ctypes.c_void_p(start), ctypes.c_size_t(whole), mmap.MADV_DONTNEED)


_C_LIBRARY = ctypes.CDLL(None)


def kept_type(rows: int, columns: int, allow_half: bool) -> torch.dtype:
    """float16 for features that are allowed it and take 2 GiB or more without."""
    return torch.float16 if allow_half and 4 * rows * columns >= HALF_FROM else torch.float32


def chunks(rows: int) -> Iterator[slice]:
    """Slices of at most `CHUNK` rows."""
    for start in range(0, rows, CHUNK):
        yield slice(start, min(start + CHUNK, rows))


def write_rows(matrix: Float[Tensor, "rows dim"], start: int, given: Float[Tensor, "given dim"]) -> float:
    """Write rows to their place; return how far they are from what was given, as a mean share of their length.

    Raises:
        ModelError: for values that float16 can't hold.
    """
    kept = matrix[start : start + len(given)]
    kept.copy_(given)
    if matrix.dtype == given.dtype or not len(given):
        release(kept)
        return 0.0
    difference = (kept.float() - given).norm(dim=1) / given.norm(dim=1).clamp(min=1e-12)
    if not bool(difference.isfinite().all()):
        largest = float(given.abs().max())
        raise ModelError(
            f"Features reach {largest:.3g}, and float16, in which so many are held, ends at 65504. Evaluate fewer images, "
            "or a model whose features are normalised."
        )
    release(kept)
    return float(difference.mean())


def at_least_float32(rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    """Rows as they are multiplied: those held in float16 as float32."""
    return rows.float() if rows.dtype == torch.float16 else rows


def unit_rows(matrix: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    """Rows divided by their lengths, as precise and as mapped as they are."""
    unit = allocate(len(matrix), matrix.shape[1], matrix.dtype, matrix.device)
    for rows in chunks(len(matrix)):
        unit[rows] = normalize(at_least_float32(matrix[rows]), dim=1)
        release(matrix[rows])
        release(unit[rows])
    return unit


def chosen_rows(
    matrix: Float[Tensor, "rows dim"], places: Int64[Tensor, " chosen"]
) -> Float[Tensor, "chosen dim"]:
    """Some rows in an order, as a matrix of their own, as precise and as mapped as they are."""
    chosen = allocate(len(places), matrix.shape[1], matrix.dtype, matrix.device)
    for rows in chunks(len(places)):
        chosen[rows] = matrix[places[rows]]
        release(matrix)
        release(chosen[rows])
    return chosen
