"""Views at a smaller size than they were cropped at, for runs that begin at low resolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from glocal.views.batch import Views


def resized(views: Views, sizes: Mapping[str, tuple[int, int]]) -> Views:
    """The same views, before colours, at (height, width) pixels by group; boxes stay: they are in source pixels.

    On the device and not in the workers, which are steps ahead and would have to know the run's plan. Two resizings in a
    row differ from one by the rounding of a byte and by what the first has smoothed.

    >>> resized(batch.views, {"global": (16, 16)}).groups["global"].pixels.shape  # doctest: +SKIP
    torch.Size([64, 2, 3, 16, 16])
    """
    groups = {
        name: batch
        if tuple(batch.pixels.shape[-2:]) == sizes[name]
        else replace(batch, pixels=_shrunk(batch.pixels, sizes[name]))
        for name, batch in views.groups.items()
    }
    return replace(views, groups=groups)


def _shrunk(
    pixels: UInt8[Tensor, "batch views 3 height width"], size: tuple[int, int]
) -> UInt8[Tensor, "batch views 3 new_height new_width"]:
    flat = pixels.flatten(0, 1)
    if pixels.device.type == "cpu":  # only there bytes have a kernel of their own
        small = F.interpolate(flat, size=size, mode="bicubic", antialias=True)
    else:
        wide = F.interpolate(flat.float(), size=size, mode="bicubic", antialias=True)
        small = wide.round_().clamp_(0, 255).byte()
    return small.view(*pixels.shape[:3], *size)
