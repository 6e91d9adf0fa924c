"""The training loop: one linear pass over the steps of a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from glocal.data import ImageSource
from glocal.distributed import average_
from glocal.models.teacher import MovingAverage
from glocal.schedules import value_at
from glocal.training.config import RunConfig
from glocal.training.gradients import backward
from glocal.training.network import StepInput
from glocal.training.optimiser import clip_gradients, learning_rate_schedule, set_schedules
from glocal.training.preparation import Run, load_batches, prepare
from glocal.training.records import Records
from glocal.training.run_folder import RunFolder
from glocal.training.saving import due, save
from glocal.training.stopping import agree, stop_requested
from glocal.training.weights import export_teacher
from glocal.views.augment import augment

AtStart = Callable[[RunConfig, ImageSource, Path], object]
"""Called once by the first process of a new run, with its configuration, its images and the folder for pictures."""


def pretrain(config: RunConfig, *, resume: bool = False, at_start: AtStart | None = None) -> Path:
    """Pretrain as configured and return the run folder.

    With `resume`, the run in `config.out` goes on from its last checkpoint; on a CPU the result is bit for bit that of
    a run that was never stopped. SIGTERM writes a checkpoint and returns.

    Raises:
        GlocalError: before anything starts, when data, folder or settings don't fit; `TrainingError` later, when the
            loss is no number or the disk refuses. What was computed until then is kept.
    """
    folder = RunFolder(config.out, resume=resume)
    first = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0
    with folder if first else contextlib.nullcontext():
        run = prepare(config, folder, resume)
        if at_start is not None and run.first and not resume:
            at_start(config, run.source, folder.pictures)
        train(run)
    return folder.path


def train(run: Run) -> None:
    """Take the steps that remain; leave a checkpoint and the exported teacher."""
    config, model, optimiser = run.config, run.model, run.optimiser
    rate = learning_rate_schedule(config.optimiser, config.training.batch_size)
    parameters = [p for p in model.parameters() if p.requires_grad]
    average = MovingAverage(model.teacher, model.student)
    step = run.done
    with Records(run) as records, stop_requested() as stop:
        if step == 0:
            records.probe(step)
            records.examine(step)
        batches = iter(load_batches(run))
        while step < run.steps:
            run.follow_clock(step)

            # ---- data
            with records.watch.wait():
                loaded = next(batches)
            records.note_unreadable(loaded.unreadable)
            pixels = loaded.views.to(run.fabric.device)
            views = augment(pixels, config.views, config.backbone.patch_size, config.mean, config.std)

            # ---- schedules
            progress = run.progress(step)
            watched = records.due(step + 1)
            learning_rate, decay = set_schedules(optimiser, config.optimiser, rate, progress)
            momentum = value_at(config.teacher.momentum, progress)

            # ---- loss and gradients
            scalars = backward(model, StepInput(views, progress, watched), config.training.accumulate)
            for frozen in model.frozen(progress):
                frozen.grad = None
            average_([*(p.grad for p in parameters if p.grad is not None), scalars["loss"]])
            scalars["gradient_norm"] = clip_gradients(parameters, config.optimiser, progress)

            # ---- update: the objectives' state, the student, the teacher
            model.finish_step()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            average.update(momentum)
            step += 1

            # ---- records: the one place that waits for the device
            records.add(step, scalars)
            records.examine(step)
            if watched:
                values = {"learning_rate": learning_rate, "weight_decay": decay, "teacher_momentum": momentum}
                used = run.cost.so_far(step, config.training.batch_size)
                records.write(step, scalars, values | used)
            records.probe(step)

            # ---- saving and stopping
            several = run.fabric.world_size > 1
            asked = stop.requested or records.finished
            stopping = watched and agree(run.fabric, asked) if several else asked
            if stopping or due(run, step):
                records.check_losses(step)
                save(run, step)
            if stopping:
                records.display.say(f"Stopped at step {step}; resume=true continues.")
                break
    if run.first:
        export_teacher(run.folder.export, model.teacher.backbone, config, step)
