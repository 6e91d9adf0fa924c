"""What one model makes of a collection: everything of it that the page shows, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from glocal.errors import ModelError
from glocal.models.encoder import Encoder
from glocal.report.collection import Collection
from glocal.report.embedded import bytes_text, map_uri, rounded, sheet
from glocal.report.patch_store import store_patches
from glocal.report.projections import (
    PALETTE,
    cluster_patches,
    foreground,
    heat_colours,
    patch_colours,
    plane_map,
)

ENOUGH_PATCHES = 14
"""Patches on a side below which small models look at enlarged images, where the images have the pixels."""
CLUSTERED = 120
"""Images whose patches are grouped."""
NEIGHBOURS = 7
CROP = 64
PORTION_PATCHES = 8192


class NamedEncoder(NamedTuple):
    """A model and what the page calls it."""

    name: str
    encoder: Encoder


def shown_size(encoder: Encoder, collection: Collection) -> int:
    """Pixels at which a model looks: its own, doubled while the grid is coarse and the images are that large."""
    size = encoder.image_size // encoder.patch_size * encoder.patch_size
    pixels = min(square.width for square in collection.squares)
    while size // encoder.patch_size < ENOUGH_PATCHES and 2 * size <= pixels:
        size *= 2
    return size


def embed_images(encoder: Encoder, collection: Collection) -> Float[Tensor, "images dim"]:
    """Class embeddings of the whole collection at the model's own size."""
    size = encoder.image_size // encoder.patch_size * encoder.patch_size
    parts = _portions(encoder, pixels_of(collection.squares, size))
    return torch.cat([encoder.features(portion).cls.float().cpu() for portion in parts])


def choose_samples(embeddings: Float[Tensor, "images dim"], count: int) -> list[int]:
    """Images that differ, each followed by the image nearest to it: something to compare, whatever the collection.

    Starts at the image nearest to the mean; each next is the one farthest from all chosen (Gonzalez 1985).
    """
    unit = F.normalize(embeddings, dim=1)
    cosine = unit @ unit.T
    chosen: list[int] = []
    nearest = torch.full((len(unit),), -torch.inf)
    start = int((unit @ unit.mean(0)).argmax())
    while len(chosen) < min(count, len(unit)):
        order = nearest.clone()
        order[chosen] = torch.inf
        anchor = start if not chosen else int(order.argmin())
        twin = cosine[anchor].clone()
        twin[[*chosen, anchor]] = -torch.inf
        pair = [anchor] if len(unit) == len(chosen) + 1 else [anchor, int(twin.argmax())]
        chosen += pair
        nearest = torch.maximum(nearest, cosine[pair].amax(0))
    return chosen[:count]


def look(
    model: NamedEncoder,
    collection: Collection,
    queries: Sequence[int],
    samples: Collection,
    embeddings: Float[Tensor, "images dim"],
    size: int | None = None,
) -> dict[str, Any]:
    """All that the page shows of one model.

    Args:
        model: the model.
        collection: images of the map, the neighbours and, with the samples, of the groups of patches.
        queries: images of the collection whose neighbours are shown.
        samples: images whose patches can be clicked, with maps of them.
        embeddings: of the collection.
        size: pixels at which the model looks at patches; null: `shown_size`.

    Raises:
        ModelError: for a model without patch embeddings.
    """
    encoder = model.encoder
    side = size or shown_size(encoder, samples)
    patches, grid, attention = _sample_features(encoder, samples.squares, side)
    stored = store_patches(patches, grid)
    front = foreground(patches, grid)
    tops = patch_colours(patches, front)
    return {
        "name": model.name,
        "size": side,
        "grid": list(grid),
        "patches": bytes_text(stored.values),
        "directions": stored.values.shape[-1],
        "dimensions": patches.shape[-1],
        "kept": round(stored.kept, 4),
        "colours": [map_uri(c.reshape(*grid, 3)) for c in patch_colours(patches)],
        "foreground": [map_uri(_with_alpha(c, f, grid)) for c, f in zip(tops, front.numpy(), strict=True)],
        "attention": attention,
        "neighbours": _neighbours(embeddings, queries),
        "map": rounded(plane_map(embeddings)),
        **_clusters(encoder, samples, collection, side),
    }


def pixels_of(squares: Sequence[Image.Image], size: int) -> UInt8[Tensor, "images 3 size size"]:
    """Square pictures at a size, as bytes."""
    scaled = [square.resize((size, size), Image.Resampling.BICUBIC) for square in squares]
    return (
        torch.from_numpy(np.stack([np.array(picture) for picture in scaled])).permute(0, 3, 1, 2).contiguous()
    )


def _portions(encoder: Encoder, pixels: UInt8[Tensor, "images 3 size size"]) -> list[Tensor]:
    """Normalised pixels in portions that bound memory."""
    images = max(1, PORTION_PATCHES * encoder.patch_size**2 // pixels.shape[-1] ** 2)
    return [encoder.normalise(portion.to(encoder.device)) for portion in torch.split(pixels, images)]


def _sample_features(
    encoder: Encoder, squares: Sequence[Image.Image], side: int
) -> tuple[Float[Tensor, "images patches dim"], tuple[int, int], list[str] | None]:
    portions = _portions(encoder, pixels_of(squares, side))
    features = [encoder.features(portion) for portion in portions]
    if features[0].patches.shape[1] == 0:
        raise ModelError(f"{encoder.name} gives no patch embeddings, which the page is about.")
    grid = features[0].grid
    try:
        maps = torch.cat([encoder.attention(portion).float().mean(1).cpu() for portion in portions])
        attention = [map_uri(heat_colours(m.view(grid).numpy())) for m in maps]
    except ModelError:
        attention = None
    return torch.cat([f.patches.float().cpu() for f in features]), grid, attention


def _with_alpha(
    colours: UInt8[np.ndarray, "patches 3"], front: np.ndarray, grid: tuple[int, int]
) -> UInt8[np.ndarray, "rows columns 4"]:
    """Colours where the foreground is, nothing elsewhere."""
    whole = np.concatenate([colours, front[:, None].astype(np.uint8) * 255], axis=1)
    return whole.reshape(*grid, 4)


def _neighbours(embeddings: Float[Tensor, "images dim"], samples: Sequence[int]) -> list[list[list[float]]]:
    """For each sample its nearest other images of the collection, as (image, cosine)."""
    unit = F.normalize(embeddings, dim=1)
    cosine = unit[list(samples)] @ unit.T
    cosine[torch.arange(len(samples)), list(samples)] = -torch.inf
    best = cosine.topk(min(NEIGHBOURS, len(unit) - 1), dim=1)
    return [
        [[i, round(c, 3)] for i, c in zip(where, values, strict=True)]
        for where, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _clusters(encoder: Encoder, samples: Collection, collection: Collection, side: int) -> dict[str, Any]:
    """Groups of patches over samples and collection: their shares, examples, and where they lie in the samples."""
    spread = np.linspace(0, len(collection.squares) - 1, min(CLUSTERED, len(collection.squares))).astype(int)
    shown = samples.beside(collection.pick([int(i) for i in spread]))
    names, squares = shown.names, shown.squares
    portions = _portions(encoder, pixels_of(squares, side))
    features = [encoder.features(portion) for portion in portions]
    grid = features[0].grid
    groups = cluster_patches(torch.cat([f.patches.float().cpu() for f in features]))
    crops = [
        patch_crop(squares[image], patch, grid) for examples in groups.examples for image, patch in examples
    ]
    shares = np.bincount(groups.labels.ravel(), minlength=len(groups.examples)) / groups.labels.size
    segments = PALETTE[groups.labels[: len(samples.squares)] % len(PALETTE)]
    return {
        "segments": [map_uri(s.reshape(*grid, 3)) for s in segments],
        "clusters": {
            "sheet": sheet(crops, CROP).to_json(),
            "examples": [len(examples) for examples in groups.examples],
            "images": [[names[image] for image, _ in examples] for examples in groups.examples],
            "shares": rounded(shares),
            "colours": [[int(v) for v in PALETTE[i % len(PALETTE)]] for i in range(len(groups.examples))],
        },
    }


def patch_crop(square: Image.Image, patch: int, grid: tuple[int, int], around: int = 2) -> Image.Image:
    """A patch, framed, and what lies around it: `around` patches on each side, fewer where the image ends."""
    cells = min(2 * around + 1, *grid)
    row, column = patch // grid[1], patch % grid[1]
    top, left = (min(max(0, at - around), end - cells) for at, end in ((row, grid[0]), (column, grid[1])))
    height, width = square.height / grid[0], square.width / grid[1]
    box = (
        round(left * width),
        round(top * height),
        round((left + cells) * width),
        round((top + cells) * height),
    )
    crop = square.crop(box).resize((CROP, CROP), Image.Resampling.LANCZOS)
    side = CROP / cells
    x, y = (column - left) * side, (row - top) * side
    ImageDraw.Draw(crop).rectangle((x, y, x + side, y + side), outline=(255, 255, 255), width=1)
    return crop
