"""Where views lie: boxes, flips and coins of one source image, drawn from its seed alone.

The law of a box is that of a random resized crop: up to ten tries, each with a share of the image's area drawn
uniformly and an aspect drawn log-uniformly; the first that fits is placed uniformly; if none fits, the largest central
box whose aspect is allowed. The source keeps its own aspect ratio and may be smaller than the view.

Everything is a pure function of (seed, number of the group in its mapping, number of the view): neither the batch, the
worker nor the other views matter. Drawing is split in two because an image's size is known only when it is decoded:
`GeometryLaw.draw` needs the seeds, `GeometryLaw.place` the sizes. Both are vectorised over images, views and tries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glocal.views.groups import ViewGroup
from glocal.views.randomness import fold_in_array, uniform_array

TRIES = 10
# Keeps these numbers apart from the photometric ones, which start from the same seed of a view.
_STREAM = np.array([0x67656F6D65747279], dtype=np.uint64)


@dataclass(frozen=True)
class Draws:
    """What is drawn before sizes are known, for `images` x all views of all groups.

    `wide` and `tall` (images, views, tries): sides of each try as multiples of the root of the image's area;
    `position` (images, views, 2): where between the first and the last possible top and left; `flip`, `strong`.
    """

    wide: NDArray[np.float64]
    tall: NDArray[np.float64]
    position: NDArray[np.float64]
    flip: NDArray[np.bool_]
    strong: NDArray[np.bool_]


class GeometryLaw:
    """The groups' declarations as arrays over all their views, in the order of the mapping."""

    def __init__(self, groups: Mapping[str, ViewGroup]) -> None:
        members = list(groups.values())
        counts = [group.count for group in members]
        ends = np.cumsum(counts)
        self.slices = {
            name: slice(int(end) - n, int(end)) for name, end, n in zip(groups, ends, counts, strict=True)
        }
        self._group = np.repeat(np.arange(len(members), dtype=np.uint64), counts)
        self._view = np.concatenate([np.arange(count, dtype=np.uint64) for count in counts])
        each = np.repeat(
            np.array([(*g.area, *g.aspect, g.flip) for g in members], dtype=np.float64), counts, axis=0
        )
        self._area_low, self._area_high, self._aspect_low, self._aspect_high, self._flip = each.T
        self._log_aspect_low, self._log_aspect_high = np.log(self._aspect_low), np.log(self._aspect_high)
        coin = [g.strong_probability if g.strong is not None else 0.0 for g in members]
        self._strong = np.repeat(np.array(coin, dtype=np.float64), counts)
        # An image-wide coin is the one of the group's first view.
        first = np.repeat(ends - np.array(counts), counts)
        shared = np.repeat([g.strong_coin == "image" for g in members], counts)
        self._coin_of = np.where(shared, first, np.arange(len(first)))

    def draw(self, seeds: NDArray[np.int64]) -> Draws:
        """Draw for every image; `seeds` holds one 64-bit integer an image."""
        of_group = fold_in_array(seeds.view(np.uint64)[:, None], self._group)
        of_view = fold_in_array(of_group, self._view)
        u = uniform_array(fold_in_array(of_view, _STREAM), 2 * TRIES + 4)
        area = _between(self._area_low, self._area_high, u[..., :TRIES])
        aspect = np.exp(_between(self._log_aspect_low, self._log_aspect_high, u[..., TRIES : 2 * TRIES]))
        position, flip, strong = u[..., 2 * TRIES : 2 * TRIES + 2], u[..., -2], u[..., -1]
        return Draws(
            wide=np.sqrt(area * aspect),
            tall=np.sqrt(area / aspect),
            position=position,
            flip=flip < self._flip,
            strong=strong[:, self._coin_of] < self._strong,
        )

    def place(self, draws: Draws, sizes: NDArray[np.int64], first: int = 0) -> NDArray[np.int64]:
        """Return the boxes, int64 (images, views, 4), of the images number `first` and on of `draws`.

        `sizes` (images, 2) holds their heights and widths.
        """
        rows = slice(first, first + len(sizes))
        height, width = (sizes[:, axis, None, None].astype(np.float64) for axis in range(2))
        root = np.sqrt(height * width)
        wide, tall = np.rint(draws.wide[rows] * root), np.rint(draws.tall[rows] * root)
        fits = (wide >= 1) & (wide <= width) & (tall >= 1) & (tall <= height)
        first_fit = fits.argmax(axis=2)[..., None]
        sides = np.stack([np.take_along_axis(side, first_fit, 2)[..., 0] for side in (tall, wide)], axis=2)
        corner = np.floor(draws.position[rows] * (sizes[:, None] - sides + 1))
        image, view = np.nonzero(~fits.any(axis=2))
        if len(image):
            sides[image, view] = self._central(view, sizes[image])
            corner[image, view] = (sizes[image] - sides[image, view]) // 2
        return np.concatenate([corner, sides], axis=2).astype(np.int64)

    def _central(self, views: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Sides of the largest box whose aspect lies in the allowed range; at least one pixel."""
        height, width = sizes.T
        tall = np.clip(np.rint(width / self._aspect_low[views]), 1, height)
        wide = np.clip(np.rint(height * self._aspect_high[views]), 1, width)
        return np.stack([tall, wide], axis=1)


def _between(
    low: NDArray[np.float64], high: NDArray[np.float64], u: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Scale uniforms (images, views, tries) to each view's range."""
    return low[:, None] + (high - low)[:, None] * u
