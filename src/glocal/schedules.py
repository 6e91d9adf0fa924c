"""Values that change during training, as small frozen objects that are asked for their value at a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from glocal.config import Config


@dataclass(frozen=True)
class Progress:
    """Where a run is: `step` optimiser steps are done of `total_steps`; an epoch has `steps_per_epoch`."""

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> float:
        """Epochs done, with fraction."""
        return self.step / self.steps_per_epoch


class Schedule(Config):
    """A value from `start` to `end`, reached along a shape after an optional linear warm-up from `warmup_from`.

    `over_epochs` limits the way from start to end (constant afterwards); without it the whole run is the way. With shape
    `step` the value is `start` on the way and `end` behind it. The warm-up's last step has `start` already, as in DINO.

    >>> Schedule(start=0.04, end=0.07, shape="linear", over_epochs=30).at(Progress(15, 100, 1))
    0.055
    """

    start: float
    """Value at the beginning, after the warm-up."""
    end: float
    """Value at the end."""
    shape: Literal["cosine", "linear", "step"] = "cosine"
    """The way between them."""
    over_epochs: Annotated[float, Field(gt=0)] | None = None
    """Epochs until `end` is reached; null: the whole run."""
    every: Literal["step", "epoch"] = "step"
    """`epoch`: one value an epoch, `end` in the way's last one (DINO's and Mugs' teacher temperature)."""
    warmup_epochs: Annotated[float, Field(ge=0)] | None = 0.0
    """Epochs of a linear rise before `start`, at most a tenth of the run; null: a tenth of the run."""
    warmup_from: float = 0.0
    """Value at the first step of the warm-up."""

    def at(self, progress: Progress) -> float:
        """The value for the step about to be done."""
        # A warm-up longer than the run would never end; a tenth of the run is what short runs get.
        warmup = progress.total_steps // 10
        if self.warmup_epochs is not None:
            warmup = min(warmup, round(self.warmup_epochs * progress.steps_per_epoch))
        if progress.step < warmup:
            return self.warmup_from + (self.start - self.warmup_from) * progress.step / max(1, warmup - 1)
        way, gone = progress.total_steps - warmup, progress.step - warmup
        if self.over_epochs is not None:
            way = round(self.over_epochs * progress.steps_per_epoch)
        if self.every == "epoch":
            way, gone = round(way / progress.steps_per_epoch) - 1, gone // progress.steps_per_epoch
        share = min(1.0, gone / max(1, way))
        if self.shape == "cosine":
            share = 0.5 * (1.0 - math.cos(math.pi * share))
        elif self.shape == "step":
            share = float(share == 1.0)
        return self.start + (self.end - self.start) * share


def value_at(value: float | Schedule, progress: Progress) -> float:
    """The value of a number or a schedule for the step about to be done."""
    return value.at(progress) if isinstance(value, Schedule) else value


def warmup_cosine(warmup: int, steps: int) -> Callable[[int], float]:
    """Learning rate as a share of its peak: linear warm-up, then half a cosine down to 0 at the end.

    >>> rate = warmup_cosine(2, 10)
    >>> [rate(0), rate(2), round(rate(6), 2)]
    [0.5, 1.0, 0.5]
    """

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return rate
