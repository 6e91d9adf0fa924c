"""Random crops: as tests of matching draw them, and as the loader draws them for one image alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from glocal.views.boxes import GeometryLaw
from glocal.views.groups import ViewGroup

Box = tuple[int, int, int, int]


def draw_box(generator: np.random.Generator, height: int, width: int, area: tuple[float, float]) -> Box:
    """A random crop of a share of the source's area, with DINO's aspect ratios, in whole pixels."""
    share = generator.uniform(*area) * height * width
    ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
    h = int(np.clip(round(np.sqrt(share / ratio)), 2, height))
    w = int(np.clip(round(np.sqrt(share * ratio)), 2, width))
    return int(generator.integers(0, height - h + 1)), int(generator.integers(0, width - w + 1)), h, w


def as_tensors(boxes: list[Box], flips: list[bool]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(boxes).view(-1, 4), torch.tensor(flips, dtype=torch.bool)


class Geometry(NamedTuple):
    """Of one group's views in one image: boxes (views, 4), flips and coins (views,)."""

    box: NDArray[np.int64]
    flip: NDArray[np.bool_]
    strong: NDArray[np.bool_]


def draw_geometry(seed: int, groups: Mapping[str, ViewGroup], height: int, width: int) -> dict[str, Geometry]:
    """The law for one image of `height` x `width` pixels, by group name."""
    law = GeometryLaw(groups)
    draws = law.draw(np.array([seed], dtype=np.int64))
    box = law.place(draws, np.array([[height, width]], dtype=np.int64))[0]
    return {
        name: Geometry(box[views], draws.flip[0, views], draws.strong[0, views])
        for name, views in law.slices.items()
    }
