"""What a recipe declares about its views: groups of equal crops, how they are drawn and who sees them."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from glocal.config import Config
from glocal.schedules import Progress, Schedule
from glocal.views.photometric import Operation

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Pipeline = tuple[Operation, ...]


class ViewGroup(Config):
    """`count` crops of one size from every image."""

    count: Annotated[int, Field(ge=1)]
    """How many views of this group each image gives: several crops of one decoded image."""
    size: Annotated[int, Field(ge=1)] | tuple[int, int] | Schedule
    """Pixels of a view: a side, or (height, width), or a side that a schedule changes during the run (in whole patches)."""
    area: tuple[float, float]
    """Smallest and largest share of the source image's area."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of the box, drawn log-uniformly."""
    flip: Probability = 0.5
    """Probability of mirroring left-right."""
    seen_by: Literal["student", "teacher", "both"] = "both"
    """Which network gets these views."""
    keep_patches: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of its patches that a network sees in a step, drawn at random for every view; the cost falls with it."""
    keep_patches_of: Literal["student", "both"] = "student"
    """Who sees only these patches; with `both` the two networks see the same ones."""
    photometric: tuple[Pipeline, ...] = ((),)
    """One pipeline for all views of the group, or several that views take in turn (DINO's two global views differ)."""
    strong: Pipeline | None = None
    """A second pipeline (Mugs): a coin decides which one a view takes."""
    strong_probability: Probability = 0.5
    """Of the second pipeline."""
    strong_coin: Literal["image", "view"] = "view"
    """One coin for all views of an image in this group, or one for every view."""

    @property
    def height_width(self) -> tuple[int, int]:
        """Pixels as (height, width); with a schedule the largest, at which views are cropped."""
        if isinstance(self.size, Schedule):
            side = round(max(self.size.start, self.size.end))
            return side, side
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def size_at(self, progress: Progress, patch_size: int) -> tuple[int, int]:
        """Pixels as (height, width) at a step: of a schedule the nearest number of whole patches, at least one."""
        if not isinstance(self.size, Schedule):
            return self.height_width
        patches = max(1, round(self.size.at(progress) / patch_size))
        side = min(self.height_width[0], patches * patch_size)
        return side, side

    @property
    def source_side(self) -> int:
        """Shorter side of a source whose boxes are all at least as large as the view: none is enlarged."""
        height, width = self.height_width
        smallest, (narrow, wide) = self.area[0], self.aspect
        return math.ceil(max(height * math.sqrt(wide / smallest), width / math.sqrt(narrow * smallest)))

    @model_validator(mode="after")
    def _check(self) -> ViewGroup:
        if self.keep_patches < 1 and self.seen_by == "teacher" and self.keep_patches_of == "student":
            raise ValueError(
                f"keep_patches is {self.keep_patches} for the student, but only the teacher sees this group; "
                "set keep_patches_of=both or leave keep_patches out"
            )
        if not self.photometric or self.count % len(self.photometric):
            raise ValueError(
                f"photometric holds {len(self.photometric)} pipelines, which {self.count} views can't share evenly; give 1, "
                f"or one for each view, or a number that divides {self.count}: views take them in turn"
            )
        for name, (low, high) in (("area", self.area), ("aspect", self.aspect)):
            if not 0 < low <= high or (name == "area" and high > 1):
                limit = " to at most 1" if name == "area" else ""
                raise ValueError(f"{name} is ({low}, {high}); it must rise from above 0{limit}")
        return self
