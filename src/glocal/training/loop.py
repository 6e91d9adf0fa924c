"""The training loop: one linear pass over the steps of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from glocal.data import ImageSource
from glocal.distributed import average_
from glocal.models.teacher import MovingAverage
from glocal.schedules import value_at
from glocal.training.bad_steps import IN_A_ROW
from glocal.training.config import RunConfig
from glocal.training.gradients import backward
from glocal.training.growth import grow, stage_at
from glocal.training.guard import conclude
from glocal.training.heads_first import trunk_share
from glocal.training.network import StepInput
from glocal.training.optimiser import clip_gradients, learning_rate_schedule, set_schedules
from glocal.training.preparation import load_batches, prepare
from glocal.training.records import Records
from glocal.training.retreat import retreat
from glocal.training.run import Run
from glocal.training.run_folder import RunFolder
from glocal.training.saving import save_if_due, saved_on_error
from glocal.training.stopping import stop_requested
from glocal.training.weights import export_teacher
from glocal.views.augment import augment

AtStart = Callable[[RunConfig, ImageSource, Path], object]
"""Called once by the first process of a new run, with its configuration, its images and the folder for pictures."""


def pretrain(
    config: RunConfig, *, resume: bool | str | Path = False, at_start: AtStart | None = None
) -> Path:
    """Pretrain as configured and return the run folder.

    With `resume`, the run in `config.out` goes on from its last checkpoint, or from the one whose path is given; on a CPU
    the result is bit for bit that of a run that was never stopped. INT, TERM, HUP, USR1 and USR2 write a checkpoint and
    return; a second INT ends the process at once.

    Raises:
        GlocalError: before anything starts, when data, folder or settings don't fit; later, when losses stay no numbers,
            images can't be read or the disk refuses. What was computed until then is kept.
    """
    with RunFolder(config.out) as folder:
        run = prepare(config, folder, Path(resume).expanduser() if isinstance(resume, str) else resume)
        train(run, at_start if run.first and not resume else None)
    return folder.path


def train(run: Run, at_start: AtStart | None = None) -> None:
    """Take the steps that remain; leave a checkpoint and the exported teacher."""
    config, model, optimiser, device = run.config, run.model, run.optimiser, run.fabric.device
    rate = learning_rate_schedule(config.optimiser, config.training.batch_size)
    parameters = [p for p in model.parameters() if p.requires_grad]
    average = MovingAverage(model.teacher, model.student)
    with Records(run) as records, stop_requested() as stop:
        if at_start is not None:
            records.guarded("Pictures", 0, lambda: at_start(config, run.source, run.folder.pictures))
        step = run.done
        records.look(step)
        batches = iter(load_batches(run))
        while step < run.steps:
            run.follow_clock(step)

            # ---- data
            with records.watch.wait(), saved_on_error(run, step):
                loaded = next(batches)
            records.note_loading(loaded.unreadable, loaded.notes)
            progress, pixels = run.progress(step), loaded.views.to(device)
            if run.cost.growing is not None:
                pixels = grow(model, pixels, config, stage_at(config, progress))
            views = augment(pixels, config.views, config.backbone.patch_size, config.mean, config.std)

            # ---- schedules
            watched = records.due(step + 1)
            trunk = trunk_share(records.losses, step, run.steps) if config.training.heads_first else 1.0
            learning_rate, decay = set_schedules(
                optimiser, config.optimiser, rate, progress, run.rate_factor, trunk
            )
            momentum = value_at(config.teacher.momentum, progress)

            # ---- loss and gradients, as means over the processes
            run.guard.begin()
            scalars = backward(model, StepInput(views, progress, watched), config.training.accumulate)
            for frozen in model.frozen(progress):
                frozen.grad = None
            asked = stop.raised(device)
            average_([*(p.grad for p in parameters if p.grad is not None), scalars["loss"], asked])
            scalars["gradient_norm"] = clip_gradients(parameters, config.optimiser, progress)
            bad = run.guard.judge(scalars["loss"], scalars["gradient_norm"], optimiser)

            # ---- update: the objectives' state, the student, the teacher; in a bad step none moves
            model.finish_step()
            run.guard.keep(bad)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            average.update(momentum)
            step += 1

            # ---- records: the one place that waits for the device
            records.add(step, scalars, bad)
            if watched:
                values = {"learning_rate": learning_rate, "weight_decay": decay, "teacher_momentum": momentum}
                used = run.cost.so_far(run.progress(step), config.training.batch_size)
                if records.write(step, scalars, values | used).in_a_row >= IN_A_ROW:
                    step = retreat(run, step)
                    records.go_back(step)
                    batches = iter(load_batches(run))
                    continue

            # ---- saving, before anything that may fail; then looking at the teacher
            stop.post(asked)
            stopping = stop.agreed()
            save_if_due(run, step, stopping)
            if stopping:
                records.display.say(f"Stopped at step {step}; resume=true continues.")
                break
            records.look(step)
            stop.requested |= records.finished
        if run.first:
            hand_over(run, step, records)


def hand_over(run: Run, step: int, records: Records) -> None:
    """Export the teacher; a run that started from weights and came to its end is told whether it beat them."""
    origin = run.folder.read_origin()
    export_teacher(run.folder.export, run.model.teacher.backbone, run.config, step, origin)
    if run.config.init is not None and step == run.steps:
        records.display.say(conclude(run.folder.metrics, run.folder.export))
