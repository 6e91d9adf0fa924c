"""What is looked for: whole images, a box in one, or one patch; as vectors of the image and of its patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from glocal.data.decoding import decode_image
from glocal.errors import ConfigError, DataError
from glocal.models.encoder import Encoder
from glocal.models.preprocessing import FeatureTransform

Views = Literal["whole", "copies"]
"""whole: the image as it is; copies: also parts of it and turned by up to 30 degrees, to find what it was made from."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of the image, or as shares of its sides where that is said."""

_PARTS = ((0.75, 2), (0.55, 3))
_TURNS = (-30, -15, 15, 30)
_BATCH = 32


@dataclass
class Query:
    """What is looked for, seen by the model."""

    pictures: list[Image.Image]
    """The views that the model saw, in colour."""
    cls: Float[Tensor, "views dim"]
    """Class embeddings of length 1."""
    patches: Float[Tensor, "views patches dim"]
    """Patch embeddings of length 1, row by row."""
    chosen: Int64[Tensor, " chosen"] | None = None
    """Patches of the only view that are looked for; None: the whole image."""
    box: Box | None = None
    """Where they lie, as shares of the sides."""


def query_images(
    encoder: Encoder,
    transform: FeatureTransform,
    images: Sequence[Image.Image | str | Path],
    views: Views = "whole",
) -> Query:
    """Look for images; several are looked for together.

    Raises:
        DataError: for none, or one that can't be read.
    """
    if not images:
        raise DataError("Nothing to look for: give one image or more.")
    opened = [_open(image) for image in images]
    return _seen(
        encoder,
        transform,
        [view for image in opened for view in (copies_of(image) if views == "copies" else [image])],
    )


def query_box(
    encoder: Encoder, transform: FeatureTransform, image: Image.Image | str | Path, box: Box
) -> Query:
    """Look for what a box (pixels) of an image shows: the patches whose centres lie in it, seen within the whole image.

    A box that holds no centre stands for the patch around its own.

    Raises:
        ConfigError: for a box that is empty or lies outside the image.
    """
    opened = _open(image)
    left, top, right, bottom = box
    if not (0 <= left < right <= opened.width and 0 <= top < bottom <= opened.height):
        raise ConfigError(
            f"box={','.join(f'{v:g}' for v in box)}: left, top, right, bottom in pixels, inside the image of "
            f"{opened.width}x{opened.height}."
        )
    seen = _seen(encoder, transform, [opened])
    rows, columns = grid_of(encoder, transform)
    shares = (left / opened.width, top / opened.height, right / opened.width, bottom / opened.height)
    y, x = ((torch.arange(count) + 0.5) / count for count in (rows, columns))
    inside = ((y >= shares[1]) & (y < shares[3]))[:, None] & ((x >= shares[0]) & (x < shares[2]))
    chosen = inside.flatten().nonzero()[:, 0]
    if len(chosen) == 0:
        row, column = int((shares[1] + shares[3]) / 2 * rows), int((shares[0] + shares[2]) / 2 * columns)
        chosen = torch.tensor([row * columns + column])
    seen.chosen, seen.box = chosen, shares
    return seen


def query_patch(
    encoder: Encoder, transform: FeatureTransform, image: Image.Image | str | Path, row: int, column: int
) -> Query:
    """Look for one patch of an image, by its row and column on the model's grid, from 0.

    Raises:
        ConfigError: when the grid has no such patch.
    """
    rows, columns = grid_of(encoder, transform)
    if not (0 <= row < rows and 0 <= column < columns):
        raise ConfigError(
            f"patch={row},{column}: the grid has rows 0 to {rows - 1} and columns 0 to {columns - 1}."
        )
    seen = _seen(encoder, transform, [_open(image)])
    seen.chosen = torch.tensor([row * columns + column])
    seen.box = patch_box(row * columns + column, (rows, columns))
    return seen


def copies_of(image: Image.Image) -> list[Image.Image]:
    """The image, thirteen parts of it, and the image turned four ways: what a copy may have been before it was edited."""
    width, height = image.size
    views = [image]
    for share, count in _PARTS:
        for place in range(count**2):
            left, top = (offset / (count - 1) * (1 - share) for offset in (place % count, place // count))
            views.append(
                image.crop(
                    (
                        round(left * width),
                        round(top * height),
                        max(round(left * width) + 1, round((left + share) * width)),
                        max(round(top * height) + 1, round((top + share) * height)),
                    )
                )
            )
    square = image.resize((min(image.size),) * 2, Image.Resampling.BICUBIC)
    return views + [square.rotate(angle, Image.Resampling.BICUBIC) for angle in _TURNS]


def patch_box(patch: int, grid: tuple[int, int]) -> Box:
    """Where a patch lies, as shares of the sides."""
    row, column = divmod(patch, grid[1])
    return column / grid[1], row / grid[0], (column + 1) / grid[1], (row + 1) / grid[0]


def grid_of(encoder: Encoder, transform: FeatureTransform) -> tuple[int, int]:
    """Rows and columns of patches of the resolved transform's square."""
    assert transform.size is not None
    side = transform.size // encoder.patch_size
    return side, side


def _seen(encoder: Encoder, transform: FeatureTransform, pictures: list[Image.Image]) -> Query:
    cls, patches = [], []
    for start in range(0, len(pictures), _BATCH):
        pixels = torch.stack(
            [transform.image(p, encoder.patch_size) for p in pictures[start : start + _BATCH]]
        )
        features = encoder.features(encoder.normalise(pixels.to(encoder.device)))
        cls.append(F.normalize(features.cls.float(), dim=-1).cpu())
        patches.append(F.normalize(features.patches.float(), dim=-1).cpu())
    return Query(pictures, torch.cat(cls), torch.cat(patches))


def _open(image: Image.Image | str | Path) -> Image.Image:
    return image.convert("RGB") if isinstance(image, Image.Image) else decode_image(Path(image))
