"""From a decoded image and a box to the pixels of a view."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

Box = Sequence[int]
"""(top, left, height, width) in source-image pixels."""


def crop_and_resize(
    image: UInt8[Tensor, "source_height source_width 3"], box: Box, size: tuple[int, int], flip: bool = False
) -> UInt8[Tensor, "3 height width"]:
    """Cut `box` (top, left, height, width) out of a decoded image, resize it to `size` (height, width), mirror it.

    Antialiased bicubic, straight from the interleaved bytes that a decoder gives: the box is a view of the source, and
    uint8 stays uint8 in the fixed-point kernel, so nothing but the result is written.

    Equals Pillow's `image.crop(...)` and `resize(..., BICUBIC)` within 2 of 255, columns resized before rows. One call
    of Pillow may take rows first; values then differ more where the kernel overshoots black or white. (It does not
    equal `resize(box=...)`, which looks at pixels outside the box too.) One core: 0.16 ms for 224x224 out of 360x300,
    0.05 ms for 96x96 out of 190x170.

    >>> import torch
    >>> crop_and_resize(torch.zeros(40, 50, 3, dtype=torch.uint8), (0, 0, 20, 30), (16, 16)).shape
    torch.Size([3, 16, 16])
    """
    top, left, height, width = box
    source = image[top : top + height, left : left + width].permute(2, 0, 1)[None]
    view = F.interpolate(source, size=size, mode="bicubic", antialias=True)[0]
    return view.flip(-1) if flip else view
