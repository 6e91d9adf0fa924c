"""Putting pictures side by side with captions; Pillow only."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 8
CAPTION = 18
BACKGROUND = (255, 255, 255)
INK = (30, 30, 30)


def to_image(
    pixels: Float[Tensor, "3 height width"], mean: Sequence[float], std: Sequence[float], scale: int = 1
) -> Image.Image:
    """A normalised view as a picture, each pixel `scale` wide."""
    m, s = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    values = ((pixels.cpu().float() * s + m).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(values)
    return (
        picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
        if scale > 1
        else picture
    )


def captioned(picture: Image.Image, text: str, colour: tuple[int, int, int] = INK) -> Image.Image:
    """The picture with a line of text above it."""
    width = max(picture.width, int(_font().getlength(text)) + 4)
    sheet = Image.new("RGB", (width, picture.height + CAPTION), BACKGROUND)
    sheet.paste(picture, (0, CAPTION))
    ImageDraw.Draw(sheet).text((0, 2), text, fill=colour, font=_font())
    return sheet


def row(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures beside each other, tops aligned."""
    width = sum(p.width for p in pictures) + GAP * (len(pictures) - 1)
    sheet = Image.new("RGB", (max(1, width), max((p.height for p in pictures), default=1)), BACKGROUND)
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return sheet


def column(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, left sides aligned."""
    height = sum(p.height for p in pictures) + GAP * (len(pictures) - 1)
    sheet = Image.new("RGB", (max((p.width for p in pictures), default=1), max(1, height)), BACKGROUND)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + GAP
    return sheet


def with_margin(picture: Image.Image, margin: int = 12) -> Image.Image:
    """The picture on a white ground."""
    sheet = Image.new("RGB", (picture.width + 2 * margin, picture.height + 2 * margin), BACKGROUND)
    sheet.paste(picture, (margin, margin))
    return sheet


def fit(picture: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side at `side` pixels."""
    factor = side / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BICUBIC if factor < 2 else Image.Resampling.NEAREST)


def hue(number: int, count: int) -> tuple[int, int, int]:
    """The n-th of `count` well separated colours."""
    red, green, blue = colorsys.hsv_to_rgb(number / max(1, count), 0.9, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)


def mark_patch(
    picture: Image.Image, patch: int, columns: int, side: int, colour: tuple[int, int, int], text: str
) -> None:
    """Frame one patch of `side` pixels and write a number into it, in place."""
    left, top = patch % columns * side, patch // columns * side
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left, top, left + side - 1, top + side - 1), outline=colour, width=max(2, side // 10))
    draw.text(
        (left + side / 2, top + side / 2),
        text,
        fill=(255, 255, 255),
        anchor="mm",
        stroke_width=2,
        stroke_fill=colour,
    )


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=12)
