"""Every match of an image's views, one pair of views at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from glocal.matching.geometric import match_patches
from glocal.views.batch import Views

Place = tuple[str, int, int]
GRIDS = {"global": (4, 4), "local": (2, 2)}


def all_matches(views: Views, image: int, second_groups: Iterable[str]) -> Iterator[tuple[Place, Place]]:
    """(group, view, patch) of the first and of the second patch of every match of one image, one view pair at a time."""
    one = slice(image, image + 1)
    for name_t in second_groups:
        for name_s in views.groups:
            a, b = views.groups[name_t], views.groups[name_s]
            for t in range(a.box.shape[1]):
                for s in range(b.box.shape[1]):
                    if (name_t, t) != (name_s, s):
                        matches = match_patches(
                            a.box[one, t], a.flip[one, t], GRIDS[name_t], b.box[one, s], b.flip[one, s], GRIDS[name_s]
                        )  # fmt: skip
                        for patch_t, patch_s in zip(
                            matches.patch_a.tolist(), matches.patch_b.tolist(), strict=True
                        ):
                            yield (name_s, s, patch_s), (name_t, t, patch_t)
