"""From a configuration to a run that can take its next step: images, processes, networks, optimiser, starting point."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from glocal.data import ImageSource, open_source
from glocal.errors import TrainingError
from glocal.models.adaptation import adapt
from glocal.models.device import choose_device
from glocal.models.encoder import LoadReport
from glocal.schedules import Progress
from glocal.training.checkpoint import load_checkpoint
from glocal.training.compute import UNBOUNDED, Clock, StepCost, cost_of_step, number_of_steps
from glocal.training.config import RunConfig
from glocal.training.network import SelfDistillation, build_distillation, seeded
from glocal.training.optimiser import build_optimiser
from glocal.training.precision import Precision, choose_precision
from glocal.training.run_folder import RunFolder
from glocal.training.trial import TrialStep
from glocal.training.weights import load_start
from glocal.training.whitening import start_whitened
from glocal.views.loader import ViewLoader, make_loader


@dataclass
class Run:
    """Everything a run holds while it lives."""

    config: RunConfig
    folder: RunFolder
    fabric: Fabric
    source: ImageSource
    model: SelfDistillation
    optimiser: torch.optim.Optimizer
    steps: int
    steps_per_epoch: int
    clock: Clock
    cost: StepCost
    precision: Precision
    done: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    start: LoadReport | None = None

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.fabric.global_rank == 0

    def progress(self, step: int) -> Progress:
        """Where step `step` lies."""
        return Progress(step, self.steps, self.steps_per_epoch)

    def follow_clock(self, step: int) -> None:
        """With `training.minutes`, plan anew how many steps there are; several processes do so at every record, as one."""
        several = self.fabric.world_size > 1
        if self.clock.limit is not None and not (several and step % self.config.training.log_every):
            steps = self.clock.steps(step, self.steps)
            self.steps = self.fabric.broadcast(steps) if several else steps


def prepare(config: RunConfig, folder: RunFolder, resume: bool) -> Run:
    """Build everything; with `resume`, in the state of the last checkpoint.

    Raises:
        GlocalError: when data, folder or settings don't fit.
    """
    minutes = config.training.minutes
    clock = Clock(None if minutes is None else 60 * minutes)
    torch.set_float32_matmul_precision(config.speed.matmul)
    choose_device(config.speed.device, "speed.device")
    source = open_source(config.data)
    batch, images = config.training.batch_size, len(source)
    if batch > images:
        raise TrainingError(
            f"training.batch_size={batch} is larger than the data set ({images} images in {config.data}). "
            f"Set training.batch_size to at most {images}."
        )
    fabric = _launch(config)
    trial = TrialStep(config, source, fabric)
    precision = choose_precision(config.speed.precision, trial)
    trial.model.autocast = precision.autocast
    cost = cost_of_step(trial, config.training)
    del trial
    config = config.model_copy(
        update={"speed": config.speed.model_copy(update={"precision": precision.name})}
    )
    model = _build(config, fabric, precision)
    report = load_start(model, config) if config.init is not None and not resume else None
    if config.backbone.patch_embed_init == "whitened" and config.init is None and not resume:
        start_whitened(model, source, config)
    seeded(config, "adapt", lambda: adapt(model.student.backbone, model.teacher.backbone, config.adapt))
    optimiser = build_optimiser(model, len(model.student.backbone.blocks), config.optimiser)
    steps_per_epoch = images // batch
    steps = number_of_steps(config.training, images, cost)
    run = Run(
        config, folder, fabric, source, model, optimiser, steps, steps_per_epoch, clock, cost, precision,
        start=report,
    )  # fmt: skip
    if resume:
        run.done, clock.spent = load_checkpoint(folder.last, model, optimiser, images)
        if clock.limit is not None:
            run.steps = run.done + max(0, round((clock.limit - clock.spent) / cost.seconds))
    else:
        if run.first:
            folder.write_start(config)
        # Stochastic depth draws from the global generator; every process needs other masks, a resumed run the next.
        torch.manual_seed(config.seed * 1000 + fabric.global_rank)
    return run


def load_batches(run: Run) -> ViewLoader:
    """The batches that remain to be trained on, as this process sees them."""
    config, on_gpu = run.config, run.fabric.device.type == "cuda"
    workers = config.speed.workers
    if workers is None:
        workers = min(16, (os.cpu_count() or 1) - 1) if on_gpu else 1
    return make_loader(
        run.source,
        config.views,
        batch_size=config.training.batch_size,
        seed=config.seed,
        workers=workers,
        start_step=run.done,
        total_steps=run.steps if run.clock.limit is None else UNBOUNDED,
        rank=run.fabric.global_rank,
        world_size=run.fabric.world_size,
        shared=config.crops,
        at_least=config.speed.decode_at_least,
        keep_bytes=config.speed.keep_decoded_mb << 20,
        pin_memory=on_gpu,
    )


def _launch(config: RunConfig) -> Fabric:
    """Start the other processes, or join them."""
    training, devices = config.training, config.speed.devices
    fabric = Fabric(
        accelerator=config.speed.device,
        devices=devices,
        # Launches and joins processes only: gradients are averaged by the loop (`distributed.average_`), autocast is ours.
        strategy=DDPStrategy() if devices > 1 or "RANK" in os.environ else "auto",
    )
    fabric.launch()
    if training.batch_size % (fabric.world_size * training.accumulate):
        raise TrainingError(
            f"training.batch_size={training.batch_size} can't be split over {fabric.world_size} processes x "
            f"training.accumulate={training.accumulate}. Choose a multiple of {fabric.world_size * training.accumulate}."
        )
    return fabric


def _build(config: RunConfig, fabric: Fabric, precision: Precision) -> SelfDistillation:
    """Both networks and the objectives, on their device."""
    speed = config.speed
    model = build_distillation(config, precision.autocast)
    model.student.backbone.checkpoint_blocks = speed.checkpoint_blocks
    model.to(fabric.device)
    model.teacher.to(fabric.device)
    if speed.compile:
        for network in (model.student, model.teacher):
            for block in network.backbone.blocks:
                block.compile(dynamic=False)
    return model
