"""Stopping a run that has left the numbers, before anything of it is saved."""

from __future__ import annotations

import math

from glocal.errors import TrainingError


def check_finite(loss: float, step: int) -> None:
    """Stop a run whose loss is no number, before anything of it is saved.

    Raises:
        TrainingError: naming the step and what helps.
    """
    if not math.isfinite(loss):
        raise TrainingError(
            f"The loss became {loss} at or before step {step}. The last checkpoint, from before, is kept: continue with "
            "resume=true and optimiser.learning_rate= at a half, optimiser.clip= smaller, or speed.precision=fp32."
        )
