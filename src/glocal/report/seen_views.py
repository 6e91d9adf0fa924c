"""What training sees, for the page: the views of an image, their boxes, and which patches are taken for one place."""

from __future__ import annotations

from typing import Any

import numpy as np

from glocal.data import ImageSource
from glocal.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from glocal.errors import GlocalError
from glocal.matching.geometric import match_patches
from glocal.report.canvas import to_image
from glocal.report.embedded import picture_uri
from glocal.report.views import make_views
from glocal.training.config import RunConfig
from glocal.views.batch import Views

SHOWN = 3
MOST_VIEWS = 8
SOURCE_WIDTH = 420


def seen_images(source: ImageSource, config: RunConfig, count: int = SHOWN) -> list[dict[str, Any]]:
    """Some images of a source with their views and matches; images that can't be read are left out."""
    shown = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)):
        try:
            shown.append(seen_image(source, int(index), config))
        except GlocalError:
            continue
    return shown


def seen_image(source: ImageSource, index: int, config: RunConfig, seed: int = 0) -> dict[str, Any]:
    """One image: the source, every view as the student sees it, boxes as shares, matches with the first teacher's view."""
    views = make_views(source, index, config, seed)
    image = source.read(index, config.speed.decode_at_least)
    image.thumbnail((SOURCE_WIDTH, SOURCE_WIDTH))
    listed = [(name, i) for name, group in config.views.items() for i in range(group.count)][:MOST_VIEWS]
    teacher = next((v for v in listed if config.views[v[0]].seen_by != "student"), listed[0])
    return {
        "name": source.key(index),
        "picture": picture_uri(image),
        "aspect": image.width / image.height,
        "teacher": listed.index(teacher),
        "views": [_view(views, name, number, config) for name, number in listed],
        "matches": [[] if view == teacher else _matches(views, teacher, view, config) for view in listed],
    }


def _view(views: Views, name: str, number: int, config: RunConfig) -> dict[str, Any]:
    batch, group = views.groups[name], config.views[name]
    height, width = views.source_size[0].tolist()
    box = batch.box[0, number].tolist()
    picture = to_image(batch.pixels[0, number], IMAGENET_MEAN, IMAGENET_STD)
    return {
        "name": f"{name} {number}",
        "seen_by": {"both": "student and teacher"}.get(group.seen_by, group.seen_by),
        "flip": bool(batch.flip[0, number]),
        "box": [round(v, 4) for v in (box[0] / height, box[1] / width, box[2] / height, box[3] / width)],
        "grid": _grid(name, config),
        "picture": picture_uri(picture, quality=90),
    }


def _matches(
    views: Views, teacher: tuple[str, int], student: tuple[str, int], config: RunConfig
) -> list[list[int]]:
    """Pairs of (teacher's patch, student's patch) that show the same place."""
    a, b = (views.groups[name] for name, _ in (teacher, student))
    t, s = teacher[1], student[1]
    matches = match_patches(
        a.box[:, t],
        a.flip[:, t],
        _grid(teacher[0], config),
        b.box[:, s],
        b.flip[:, s],
        _grid(student[0], config),
    )
    return [[int(x), int(y)] for x, y in zip(matches.patch_a, matches.patch_b, strict=True)]


def _grid(name: str, config: RunConfig) -> tuple[int, int]:
    height, width = config.views[name].height_width
    return height // config.backbone.patch_size, width // config.backbone.patch_size
