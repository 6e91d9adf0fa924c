"""What a model makes of images, each as one picture: attention, colours of patches, neighbours, correspondences, a map."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from glocal.errors import DataError
from glocal.matching.mutual_patches import mutual_patches
from glocal.models.encoder import Encoder
from glocal.models.features import Features
from glocal.report.canvas import BACKGROUND, captioned, column, hue, mark_patch, row, with_margin
from glocal.report.collection import Collection
from glocal.report.model_looks import embed_images, pixels_of, shown_size
from glocal.report.projections import heat_colours, patch_colours, plane_map

SIDE = 224
PLANE = 1200
TILE = 64


def draw_attention(encoder: Encoder, images: Collection, size: int | None = None) -> Image.Image:
    """Each image beside the last block's attention from the class token: mean over heads, then head by head."""
    side = size or shown_size(encoder, images)
    maps = encoder.attention(_input(encoder, images, side)).float().cpu()
    grid = (side // encoder.patch_size,) * 2
    rows = [
        row(
            [
                _large(square),
                *(_map(heat_colours(head.view(grid).numpy())) for head in (heads.mean(0), *heads)),
            ]
        )
        for square, heads in zip(images.squares, maps, strict=True)
    ]
    return with_margin(captioned(column(rows), "image, mean attention of the class token, each head"))


def draw_pca(encoder: Encoder, images: Collection, size: int | None = None) -> Image.Image:
    """Each image above its patches' first three principal components as colours: one basis for all, signs fixed."""
    features = encoder.features(_input(encoder, images, size or shown_size(encoder, images)))
    colours = patch_colours(features.patches.float().cpu())
    pairs = [
        column([_large(square), _map(colour.reshape(*features.grid, 3))])
        for square, colour in zip(images.squares, colours, strict=True)
    ]
    return with_margin(captioned(row(pairs), "equal colours: equal content, by the model's patch embeddings"))


def draw_neighbours(
    encoder: Encoder, queries: Collection, gallery: Collection, shown: int = 6
) -> Image.Image:
    """Each query with its nearest gallery images by class embedding, the cosine above each; never the query itself."""
    asked, given = (F.normalize(embed_images(encoder, images), dim=1) for images in (queries, gallery))
    cosine = asked @ given.T
    for q, query in enumerate(queries.squares):
        itself = [g for g, square in enumerate(gallery.squares) if square is query]
        cosine[q, itself] = -torch.inf
    best = cosine.topk(min(shown, len(gallery.squares)), dim=1)
    rows = []
    for q, square in enumerate(queries.squares):
        answers = [
            captioned(_large(gallery.squares[int(i)]), f"{float(c):.2f} {gallery.names[int(i)][-24:]}")
            for i, c in zip(best.indices[q], best.values[q], strict=True)
            if torch.isfinite(c)
        ]
        rows.append(row([captioned(_large(square), queries.names[q][-28:]), *answers]))
    return with_margin(column(rows))


def draw_correspondences(
    encoder: Encoder, pair: Collection, size: int | None = None, most: int = 12
) -> Image.Image:
    """Two images whose most alike patches, nearest to each other both ways by cosine, carry one colour and number.

    Raises:
        DataError: unless there are two images.
    """
    if len(pair.squares) != 2:
        raise DataError(f"Correspondences are drawn between two images; got {len(pair.squares)}.")
    features = encoder.features(_input(encoder, pair, size or shown_size(encoder, pair)))
    matches = mutual_nearest(features)[:most]
    pictures = [square.resize((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS) for square in pair.squares]
    columns = features.grid[1]
    for number, match in enumerate(matches):
        for picture, patch in zip(pictures, match, strict=True):
            mark_patch(
                picture, patch, columns, 2 * SIDE // columns, hue(number, len(matches)), str(number + 1)
            )
    return with_margin(
        captioned(row(pictures), "patches that find each other, by the model's patch embeddings alone")
    )


def mutual_nearest(features: Features) -> list[tuple[int, int]]:
    """Pairs of patches of two images that are each other's nearest by cosine, the most alike first."""
    pairs = mutual_patches(*F.normalize(features.patches.float(), dim=-1).cpu())
    return list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def draw_map(encoder: Encoder, images: Collection) -> Image.Image:
    """Every image where its class embedding lies on a plane (t-SNE): what the model finds alike lies together."""
    places: Float[np.ndarray, "images 2"] = plane_map(embed_images(encoder, images))
    sheet = Image.new("RGB", (PLANE, PLANE), BACKGROUND)
    for (x, y), square in zip(places, images.squares, strict=True):
        sheet.paste(
            square.resize((TILE, TILE), Image.Resampling.LANCZOS),
            (round(float(x) * (PLANE - TILE)), round(float(y) * (PLANE - TILE))),
        )
    return sheet


MODEL_PICTURES: dict[str, Callable[[Encoder, Collection, int | None], Image.Image]] = {
    "attention": draw_attention,
    "pca": draw_pca,
    "neighbours": lambda encoder, images, size: draw_neighbours(
        encoder, images.pick(range(min(8, len(images.squares)))), images
    ),
    "correspondences": draw_correspondences,
    "map": lambda encoder, images, size: draw_map(encoder, images),
}
"""Each picture by its name on the command line, of a model, images and the pixels at which it looks at patches."""
SHOWN_IMAGES = {"attention": 6, "pca": 6, "neighbours": 400, "correspondences": 2, "map": 400}
"""How many images each takes when nobody says."""


def _input(encoder: Encoder, images: Collection, side: int) -> Float[Tensor, "images 3 side side"]:
    return encoder.normalise(pixels_of(images.squares, side).to(encoder.device))


def _large(square: Image.Image) -> Image.Image:
    return square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _map(colours: UInt8[np.ndarray, "rows columns 3"]) -> Image.Image:
    return Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.NEAREST)
