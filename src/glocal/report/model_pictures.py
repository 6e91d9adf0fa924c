"""Pictures of what a model has learnt: where its class token looks, and which images and patches it finds alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from glocal.models.encoder import Encoder
from glocal.report.canvas import captioned, column, fit, hue, mark_patch, row, with_margin

SIDE = 128


def draw_attention(encoder: Encoder, images: Sequence[UInt8[Tensor, "3 height width"]]) -> Image.Image:
    """Each image beside the last block's attention from the class token, mean over heads and head by head."""
    maps = encoder.attention(encoder.normalise(torch.stack(list(images)).to(encoder.device))).cpu()
    rows = []
    for image, heads in zip(images, maps, strict=True):
        grid = _grid(image, encoder.patch_size)
        shown = [fit(_picture(image), SIDE)] + [heat(h.view(grid), SIDE) for h in (heads.mean(0), *heads)]
        rows.append(row(shown))
    return with_margin(captioned(column(rows), "image, mean attention of the class token, each head"))


def draw_neighbours(
    queries: Sequence[UInt8[Tensor, "3 height width"]],
    gallery: Sequence[UInt8[Tensor, "3 height width"]],
    ranks: dict[str, Tensor],
    right: dict[str, Tensor],
) -> Image.Image:
    """Each query with its nearest gallery images by several embeddings; a green frame where the answer is right.

    Args:
        queries: the pictures asked about.
        gallery: the pictures to choose from.
        ranks: for each embedding's name, (queries, shown) indices into the gallery, nearest first.
        right: for each name, (queries, shown) whether it is a right answer.
    """
    blocks = []
    for number, query in enumerate(queries):
        parts = [captioned(fit(_picture(query), SIDE), "query")]
        for name, nearest in ranks.items():
            found = [
                _framed(_picture(gallery[int(i)]), (40, 160, 60) if ok else (200, 50, 40))
                for i, ok in zip(nearest[number], right[name][number], strict=True)
            ]
            parts.append(captioned(row(found), name))
        blocks.append(row(parts))
    return with_margin(column(blocks))


def draw_patch_matches(
    encoder: Encoder,
    left: UInt8[Tensor, "3 height width"],
    right: UInt8[Tensor, "3 height width"],
    most: int = 8,
) -> Image.Image:
    """Two pictures whose most alike patches (mutual nearest neighbours by cosine) carry one colour and number."""
    features = [encoder.features(encoder.normalise(p[None].to(encoder.device))) for p in (left, right)]
    a, b = (F.normalize(f.patches[0].float(), dim=-1) for f in features)
    similarity = a @ b.T
    best = similarity.argmax(1)
    mutual = similarity.argmax(0)[best] == torch.arange(len(a), device=a.device)
    score = similarity.gather(1, best[:, None])[:, 0].masked_fill(~mutual, -2.0)
    chosen = score.topk(min(most, int(mutual.sum()))).indices.tolist()
    scale = max(1, 256 // max(left.shape[1:]))
    pictures = [_enlarged(p, scale) for p in (left, right)]
    for number, patch in enumerate(chosen):
        for picture, index, f in (
            (pictures[0], patch, features[0]),
            (pictures[1], int(best[patch]), features[1]),
        ):
            mark_patch(
                picture,
                index,
                f.grid[1],
                encoder.patch_size * scale,
                hue(number, len(chosen)),
                str(number + 1),
            )
    return with_margin(
        captioned(row(pictures), "patches that find each other, by the model's patch embeddings alone")
    )


def heat(values: Float[Tensor, "rows columns"], side: int) -> Image.Image:
    """A map of values as a heat picture: low dark, high bright."""
    low, high = values.min(), values.max()
    unit = ((values - low) / (high - low).clamp_min(1e-12)).numpy()
    colours = np.stack([np.clip(3 * unit - shift, 0, 1) for shift in (0, 1, 2)], axis=-1)
    return fit(Image.fromarray((colours * 255).astype(np.uint8)), side)


def _grid(image: Tensor, patch: int) -> tuple[int, int]:
    return image.shape[1] // patch, image.shape[2] // patch


def _picture(image: UInt8[Tensor, "3 height width"]) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())


def _enlarged(image: Tensor, scale: int) -> Image.Image:
    picture = _picture(image)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _framed(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    shown = fit(picture, SIDE)
    ImageDraw.Draw(shown).rectangle((0, 0, shown.width - 1, shown.height - 1), outline=colour, width=4)
    return shown
