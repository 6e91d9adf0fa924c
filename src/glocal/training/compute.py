"""Compute as a unit: what a step costs, how many steps a budget buys, and how a run keeps to a time."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from glocal.errors import TrainingError
from glocal.schedules import Progress
from glocal.training.config import TrainingConfig
from glocal.training.growth import GrowingCost
from glocal.training.trial import TrialStep


@dataclass(frozen=True)
class StepCost:
    """FLOPs of a step over all processes, and the seconds that it took before the run (0: not timed)."""

    flops: float
    seconds: float = 0.0
    growing: GrowingCost | None = None
    """Where steps cost differently: `flops` is then that of the largest."""

    def so_far(self, progress: Progress, batch_size: int) -> dict[str, float]:
        """What the steps done have used, for the records: `images` seen and `flops` computed."""
        flops = progress.step * self.flops if self.growing is None else self.growing.until(progress)
        return {"images": progress.step * batch_size, "flops": flops}


def cost_of_step(trial: TrialStep, training: TrainingConfig) -> StepCost:
    """Count a trial step; time it too where the length of the run is given in minutes."""
    flops = trial.flops()
    return StepCost(flops, min(trial.seconds(), trial.seconds()) if training.minutes is not None else 0.0)


def number_of_steps(training: TrainingConfig, images: int, cost: StepCost) -> int:
    """Optimiser steps of a run on a set of `images`; with `minutes`, a first estimate that `Clock` corrects.

    Raises:
        TrainingError: when the FLOPs given don't reach for one step.
    """
    batch = training.batch_size
    if training.steps is not None:
        return training.steps
    if training.images is not None:
        return max(1, round(training.images / batch))
    if training.flops is not None:
        within = int(training.flops / cost.flops)
        if cost.growing is not None:
            within = cost.growing.steps_within(training.flops, images // batch)
        if within == 0:
            raise TrainingError(
                f"training.flops={training.flops:.3g} is less than one step takes ({cost.flops:.3g}). Raise it, or lower "
                "training.batch_size."
            )
        return within
    if training.minutes is not None:
        return max(1, round(60 * training.minutes / cost.seconds))
    return max(1, round(training.epochs * (images // batch)))


@dataclass
class Clock:
    """Counts a run's seconds over all its continuations and, given a limit, tells how many steps it will have taken then.

    The estimate is the steps done and those that fit into the time left at this process's pace so far. It grows exact
    towards the end: schedules, which go by the share of all steps, follow the share of the time, and the last step is
    known to be the last. What happens before the first step (opening data, the first probe) takes time but doesn't count
    into the pace.
    """

    limit: float | None = None
    """Seconds of the whole run; None for no limit."""
    spent: float = 0.0
    """Seconds of the processes that this one continues."""
    began: float = field(default_factory=lambda: time.perf_counter())
    _asked: int = 0
    _from: tuple[int, float] = (0, 0.0)

    def used(self) -> float:
        """Seconds so far."""
        return self.spent + time.perf_counter() - self.began

    def steps(self, step: int, planned: int) -> int:
        """How many steps the run will have, asked before each; `planned` stands while there is nothing to go by.

        At least one more than `step`, so that the last step is announced before it is taken.
        """
        if self.limit is None:
            return planned
        used = self.used()
        self._asked += 1
        if self._asked <= 2 or step <= self._from[0]:
            # The first step waits for workers to start. A run that was put back begins to count there.
            self._from = step, used
            return max(step + 1, planned)
        pace = (used - self._from[1]) / (step - self._from[0])
        return max(step + 1, step + round((self.limit - used) / pace))


UNBOUNDED = sys.maxsize // 2
"""Steps for a loader when the clock decides which is the last."""
