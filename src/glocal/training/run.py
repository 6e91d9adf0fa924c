"""What a run holds while it lives."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor

from glocal.data import ImageSource
from glocal.schedules import Progress
from glocal.training.bad_steps import StepGuard
from glocal.training.compute import Clock, StepCost
from glocal.training.config import RunConfig
from glocal.training.network import SelfDistillation
from glocal.training.precision import Precision
from glocal.training.run_folder import RunFolder


@dataclass
class Run:
    """A run between two steps: `done` steps are done of `steps`, after `retreats` to a checkpoint at half the rate.

    `licence` is that of the weights it starts from, where known; `notes` are sentences for whoever starts it; `unreadable`
    the images that could not be decoded, with the reason; `balance` how often each image is drawn, null: once an epoch;
    `sums` the losses since the last record, added up on the device:
    a checkpoint may lie between two records.
    """

    config: RunConfig
    folder: RunFolder
    fabric: Fabric
    source: ImageSource
    model: SelfDistillation
    optimiser: torch.optim.Optimizer
    guard: StepGuard
    steps: int
    steps_per_epoch: int
    data_fingerprint: str
    clock: Clock
    cost: StepCost
    precision: Precision
    done: int = 0
    retreats: int = 0
    licence: str | None = None
    notes: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    balance: Float[np.ndarray, " images"] | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.fabric.global_rank == 0

    @property
    def rate_factor(self) -> float:
        """What the schedule of the learning rate is multiplied by: every retreat halves it."""
        return 0.5**self.retreats

    def progress(self, step: int) -> Progress:
        """Where step `step` lies."""
        return Progress(step, self.steps, self.steps_per_epoch)

    def follow_clock(self, step: int) -> None:
        """With `training.minutes`, plan anew how many steps there are; several processes do so at every record, as one."""
        several = self.fabric.world_size > 1
        if self.clock.limit is not None and not (several and step % self.config.training.log_every):
            steps = self.clock.steps(step, self.steps)
            self.steps = self.fabric.broadcast(steps) if several else steps
