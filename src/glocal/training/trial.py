"""One real step on networks of its own, taken before a run and thrown away: to count its products and to time it."""

from __future__ import annotations

import time

import torch
from lightning_fabric import Fabric

from glocal.data import ImageSource
from glocal.distributed import all_reduce_sum, rank, world_size
from glocal.models.adaptation import adapt
from glocal.models.flops import flop_counter
from glocal.models.teacher import MovingAverage
from glocal.schedules import Progress
from glocal.training.config import RunConfig
from glocal.training.gradients import backward
from glocal.training.growth import Stage, grow
from glocal.training.network import StepInput, build_distillation, seeded
from glocal.training.optimiser import build_optimiser, clip_gradients
from glocal.views.augment import augment
from glocal.views.loader import make_loader

_HALFWAY = Progress(step=1, total_steps=2, steps_per_epoch=1)


class TrialStep:
    """The step of a run, with its own weights, on the run's first batch. Several processes take it together.

    The run's networks, generators and files don't see it. Holds the memory of one step while it lives.
    """

    def __init__(self, config: RunConfig, source: ImageSource, fabric: Fabric) -> None:
        self.config, self.device = config, fabric.device
        self.model = build_distillation(config).to(self.device)
        self.model.teacher.to(self.device)
        student, teacher = self.model.student.backbone, self.model.teacher.backbone
        seeded(config, "adapt", lambda: adapt(student, teacher, config.adapt))
        student.checkpoint_blocks = config.speed.checkpoint_blocks
        self.optimiser = build_optimiser(self.model, len(student.blocks), config.optimiser)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.average = MovingAverage(self.model.teacher, self.model.student)
        loader = make_loader(
            source, config.views, batch_size=config.training.batch_size, seed=config.seed, workers=0, total_steps=1,
            rank=rank(), world_size=world_size(), shared=config.crops,
            at_least=config.speed.decode_at_least, keep_bytes=0,
        )  # fmt: skip
        self.views = next(iter(loader)).views.to(self.device)

    def flops(self, stage: Stage | None = None) -> float:
        """Floating-point operations of one step, over all processes; of a run that grows, at a stage (None: the largest).

        Those of matrix products and convolutions of both networks, heads, losses and optimiser, a multiplication and an
        addition as two; all that is executed, recomputation included. Augmentation is left out. What every process
        repeats, the optimiser's update, counts once.
        """
        with flop_counter() as networks:
            self._forwards_and_backwards(stage=stage)
        with flop_counter() as update:
            self._update()
        counted = torch.tensor(float(networks.get_total_flops()), dtype=torch.float64, device=self.device)
        return float(all_reduce_sum(counted)) + float(update.get_total_flops())

    def seconds(self, parts: int = 1) -> float:
        """Time one step on the first of `parts` equal parts of the batch."""
        self._wait()
        began = time.perf_counter()
        self._forwards_and_backwards(parts)
        self._update()
        self._wait()
        return time.perf_counter() - began

    def _forwards_and_backwards(self, parts: int = 1, stage: Stage | None = None) -> None:
        config = self.config
        pixels = self.views.split(parts)[0]
        if stage is not None:
            pixels = grow(self.model, pixels, config, stage)
        views = augment(pixels, config.views, config.backbone.patch_size, config.mean, config.std)
        micro_batches = config.training.accumulate if parts == 1 else 1
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            backward(self.model, StepInput(views, _HALFWAY, watch=False), micro_batches)

    def _update(self) -> None:
        clip_gradients(self.parameters, self.config.optimiser, _HALFWAY)
        self.model.finish_step()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.average.update(0.99)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
