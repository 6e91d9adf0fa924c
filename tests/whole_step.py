"""One step as the loop takes it, without data, schedules and records."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from glocal.models.teacher import MovingAverage
from glocal.schedules import Progress
from glocal.training.bad_steps import StepGuard
from glocal.training.config import RunConfig
from glocal.training.gradients import backward
from glocal.training.network import StepInput, build_distillation
from glocal.training.optimiser import build_optimiser, clip_gradients
from glocal.views.batch import Views


class SmallTraining:
    """Both networks of a configuration, their optimiser, guard and average, on a device."""

    def __init__(self, config: RunConfig, device: torch.device, autocast: torch.dtype | None) -> None:
        self.config = config
        self.model = build_distillation(config, autocast).to(device)
        self.model.teacher.to(device)
        self.optimiser = build_optimiser(self.model, 2, config.optimiser)
        self.guard = StepGuard(self.model.objectives).to(device)
        self.average = MovingAverage(self.model.teacher, self.model.student)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]

    def step(
        self,
        views: Views,
        progress: Progress,
        watch: bool = False,
        between: Callable[[list[nn.Parameter]], object] = lambda parameters: None,
    ) -> dict[str, Tensor]:
        """Loss, gradients, `between`, clipping, the judgement of bad steps, optimiser and average."""
        self.guard.begin()
        scalars = backward(self.model, StepInput(views, progress, watch))
        between(self.parameters)
        norm = clip_gradients(self.parameters, self.config.optimiser, progress)
        bad = self.guard.judge(scalars["loss"], norm, self.optimiser)
        self.model.finish_step()
        self.guard.keep(bad)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.average.update(0.99)
        return scalars
