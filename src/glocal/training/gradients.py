"""The gradients of one step, over its micro-batches and processes."""

from __future__ import annotations

import contextlib

from torch import Tensor

from glocal.schedules import Progress
from glocal.training.network import StepInput
from glocal.training.preparation import Run
from glocal.views.batch import Views


def backward(run: Run, views: Views, progress: Progress, watch: bool) -> dict[str, Tensor]:
    """Accumulate the gradients of one step over its micro-batches; return the mean scalars."""
    parts = run.config.training.accumulate
    scalars: dict[str, Tensor] = {}
    for number, part in enumerate(views.split(parts)):
        last = number == parts - 1 or run.fabric.world_size == 1
        with contextlib.nullcontext() if last else run.fabric.no_backward_sync(run.wrapped):
            loss, found = run.wrapped(StepInput(part, progress, watch))
            run.fabric.backward(loss / parts)
        found["loss"] = loss.detach()
        for name, value in found.items():
            if name == "teacher_cls":
                scalars[name] = value
            else:
                scalars[name] = scalars.get(name, 0.0) + value / parts
    return scalars
