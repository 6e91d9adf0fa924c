"""Sliding-window inference: per-patch logits of overlapping windows, averaged at the image's own size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from glocal.errors import ConfigError, UnreadableImageError
from glocal.evaluation.segmentation.dense_features import PatchReader, upsample
from glocal.evaluation.segmentation.masks import SegmentationData
from glocal.extraction.patch_stream import patches_of_pixels
from glocal.extraction.progress import progress_bar

PatchHead = Callable[[Tensor, tuple[int, int]], Tensor]
"""(patches dim), grid -> (patches classes)."""


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Starts of windows that cover `length`; the last is moved back to end with it.

    >>> window_starts(683, 512, 341)
    [0, 171]
    """
    if length <= window:
        return [0]
    count = -(-(length - window) // stride) + 1
    return [min(number * stride, length - window) for number in range(count)]


def sliding_logits(
    reader: PatchReader, data: SegmentationData, stride: int, head: PatchHead
) -> Iterator[tuple[UInt8[np.ndarray, "h w"], Float[Tensor, "classes h w"]]]:
    """Yield each mask with logits of its size. The shorter side is brought to the window, `reader.side`; one image is
    seen at a time.

    Raises:
        ConfigError: when windows would leave gaps.
    """
    window, counted = reader.side, reader.counted
    if not 0 < stride <= window:
        raise ConfigError(f"stride={stride} with windows of {window} px; allowed: 1 to {window}.")
    source = data.checked().source
    with progress_bar(f"{source.name}: sliding windows", len(source), reader.work.progress) as advance:
        for index in range(len(source)):
            advance(1)
            try:
                image, mask = source.read(index), data.mask(index)
            except UnreadableImageError as error:
                counted.skipped.add(source, index, str(error))
                continue
            if counted.teaches_nothing(source, index, mask):
                continue
            logits = _image_logits(reader, image, stride, head)
            size = (mask.shape[0], mask.shape[1])
            yield mask, F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def _image_logits(
    reader: PatchReader, image: Image.Image, stride: int, head: PatchHead
) -> Float[Tensor, "classes h w"]:
    """Mean logits over all windows, at the resized image's size."""
    window, encoder = reader.side, reader.encoder
    scale = window / min(image.size)
    size = max(window, round(image.width * scale)), max(window, round(image.height * scale))
    resized = np.array(image.resize(size, Image.Resampling.BICUBIC))
    pixels = encoder.normalise(torch.from_numpy(resized).permute(2, 0, 1)[None].to(encoder.device))
    total: Tensor | None = None
    visits = torch.zeros(pixels.shape[2:], device=pixels.device)
    for top in window_starts(pixels.shape[2], window, stride):
        for left in window_starts(pixels.shape[3], window, stride):
            where = (slice(top, top + window), slice(left, left + window))
            patches, grid = patches_of_pixels(encoder, pixels[:, :, where[0], where[1]], reader.layer)
            logits = upsample(head(patches[0], grid), grid, (window, window))
            if total is None:
                total = logits.new_zeros(len(logits), *pixels.shape[2:])
            total[:, where[0], where[1]] += logits
            visits[where] += 1
    assert total is not None
    return total / visits
