"""Pictures of what training sees: the crops of an image, their patch grids and augmentations, and the matched patches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from glocal.data import ImageSource
from glocal.data.readable import first_readable
from glocal.matching.geometric import Rule, match_patches
from glocal.report.canvas import captioned, column, fit, hue, mark_patch, row, to_image, with_margin
from glocal.training.config import RunConfig
from glocal.views.augment import augment
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup
from glocal.views.loader import ViewDataset
from glocal.views.randomness import hash_seed
from glocal.views.sampling import BatchKey

SHOWN_SIDE = 256
"""Pixels on paper of the largest view; smaller ones keep their proportion to it."""


def draw_views(source: ImageSource, index: int, config: RunConfig, seed: int = 0) -> Image.Image:
    """One image: the source with its boxes, then every view as the student sees it, and the teacher's where it differs.

    >>> from glocal.recipes import configure
    >>> config = configure("pw-self", data="photos", out="x", preset="small")  # doctest: +SKIP
    >>> draw_views(open_source("photos"), 0, config).save("views.png")  # doctest: +SKIP
    """
    index, image = first_readable(source, index, lambda i: source.read(i, config.speed.decode_at_least))
    views = make_views(source, index, config, seed)
    scale = _scale(config.views)
    rows = [captioned(_with_boxes(image, views), source.key(index))]
    for name, group in config.views.items():
        batch = views.groups[name]
        pictures = []
        for view in range(group.count):
            who = {"both": "student and teacher", "student": "student", "teacher": "teacher"}[group.seen_by]
            flip = ", mirrored" if batch.flip[0, view] else ""
            picture = _with_grid(
                to_image(batch.pixels[0, view], config.mean, config.std, scale), config, scale
            )
            pictures.append(captioned(picture, f"{name} {view}{flip}", hue(view, group.count)))
        rows.append(captioned(row(pictures), f"{name}: {group.count} of {_size(group)} px, seen by {who}"))
        if batch.teacher_pixels is not None and group.seen_by != "student":
            clean = [to_image(p, config.mean, config.std, scale) for p in batch.teacher_pixels[0]]
            rows.append(captioned(row(clean), f"{name}: as the teacher sees them"))
    return with_margin(column(rows))


def draw_matches(
    source: ImageSource, index: int, config: RunConfig, seed: int = 0, rule: Rule = "center", most: int = 12
) -> Image.Image:
    """One image: pairs of views with matched patches in one colour and number on both sides.

    Shows the first two teacher views against each other and the first against the first two smaller views; at most
    `most` matches a pair, evenly chosen.
    """
    views = make_views(source, index, config, seed)
    seen = [(name, i) for name, g in config.views.items() for i in range(g.count) if g.seen_by != "student"]
    other = [(name, i) for name, g in config.views.items() for i in range(g.count) if g.seen_by != "teacher"]
    teacher = seen[0]
    students = [view for view in other if view != teacher][:3]
    rows = []
    for student in students:
        rows.append(_matched_pair(views, teacher, student, config, rule, most))
    return with_margin(column(rows))


def contact_sheet(source: ImageSource, config: RunConfig, images: int = 8, seed: int = 0) -> Image.Image:
    """Several images of a data set, each with its views in one line."""
    scale = _scale(config.views, side=96)
    lines = []
    for index in np.linspace(0, len(source) - 1, min(images, len(source))).astype(int):
        position, image = first_readable(source, int(index), source.read)
        views = make_views(source, position, config, seed)
        shown = [fit(image, 96)]
        for name in config.views:
            shown += [to_image(p, config.mean, config.std, scale) for p in views.groups[name].pixels[0]]
        lines.append(row(shown))
    return with_margin(column(lines))


def draw_start(config: RunConfig, source: ImageSource, folder: Path) -> None:
    """What a run is about to see: `views.png` and `matches.png` of its first image, and a contact sheet of eight."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_views(source, 0, config).save(folder / "views.png")
    draw_matches(source, 0, config).save(folder / "matches.png")
    contact_sheet(source, config).save(folder / "data.png")


def make_views(source: ImageSource, index: int, config: RunConfig, seed: int = 0) -> Views:
    """The augmented, normalised views of one image, as a batch of one."""
    key = BatchKey(np.array([index], dtype=np.int64), np.array([hash_seed(seed, index)], dtype=np.int64))
    loaded = ViewDataset(source, config.views, config.speed.decode_at_least).render(key)
    return augment(loaded.views, config.views, config.backbone.patch_size, config.mean, config.std)


def _matched_pair(
    views: Views, teacher: tuple[str, int], student: tuple[str, int], config: RunConfig, rule: Rule, most: int
) -> Image.Image:
    patch, scale = config.backbone.patch_size, _scale(config.views)
    sides = []
    grids = []
    for name, view in (teacher, student):
        height, width = config.views[name].height_width
        grids.append((height // patch, width // patch))
        batch = views.groups[name]
        pixels = (
            batch.pixels if (name, view) == student or batch.teacher_pixels is None else batch.teacher_pixels
        )
        sides.append(_with_grid(to_image(pixels[0, view], config.mean, config.std, scale), config, scale))
    a, b = (views.groups[name] for name, _ in (teacher, student))
    t, s = teacher[1], student[1]
    matches = match_patches(
        a.box[:, t], a.flip[:, t], grids[0], b.box[:, s], b.flip[:, s], grids[1], rule=rule
    )
    count = matches.image.numel()
    chosen = (
        np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))
        if count
        else np.array([], dtype=int)
    )
    for number, match in enumerate(chosen):
        colour = hue(number, len(chosen))
        for side, grid, index in (
            (0, grids[0], matches.patch_a[match]),
            (1, grids[1], matches.patch_b[match]),
        ):
            mark_patch(sides[side], int(index), grid[1], patch * scale, colour, str(number + 1))
    text = f"teacher {teacher[0]} {t} and student {student[0]} {s}: {count} matched patches, rule {rule}"
    return captioned(row(sides), text)


def _with_grid(picture: Image.Image, config: RunConfig, scale: int) -> Image.Image:
    side = config.backbone.patch_size * scale
    lines = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(lines)
    for x in range(side, picture.width, side):
        draw.line((x, 0, x, picture.height), fill=(255, 255, 255, 90))
    for y in range(side, picture.height, side):
        draw.line((0, y, picture.width, y), fill=(255, 255, 255, 90))
    return Image.alpha_composite(picture.convert("RGBA"), lines).convert("RGB")


def _with_boxes(picture: Image.Image, views: Views) -> Image.Image:
    height, width = views.source_size[0].tolist()
    factor = SHOWN_SIDE / max(height, width)
    shown = picture.resize((round(width * factor), round(height * factor)))
    draw = ImageDraw.Draw(shown)
    for group in views.groups.values():
        for view, (top, left, h, w) in enumerate((group.box[0] * factor).tolist()):
            draw.rectangle(
                (left, top, left + w - 1, top + h - 1), outline=hue(view, group.box.shape[1]), width=2
            )
    return shown


def _scale(groups: Mapping[str, ViewGroup], side: int = SHOWN_SIDE) -> int:
    return max(1, side // max(max(g.height_width) for g in groups.values()))


def _size(group: ViewGroup) -> str:
    height, width = group.height_width
    return f"{height}" if height == width else f"{height}x{width}"
