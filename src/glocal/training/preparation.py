"""From a configuration to a run that can take its next step: images, processes, networks, optimiser, starting point."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from glocal.curation.clusters import balance_weights
from glocal.data import ImageSource, open_source
from glocal.distributed import gather_objects
from glocal.errors import TrainingError
from glocal.models.adaptation import adapt
from glocal.models.device import choose_device
from glocal.training.bad_steps import StepGuard
from glocal.training.checkpoint import read_checkpoint, read_newest, written_config
from glocal.training.compute import UNBOUNDED, Clock, StepCost, cost_of_step, number_of_steps
from glocal.training.config import RunConfig
from glocal.training.data_changes import count_added, write_image_names
from glocal.training.growth import GrowingCost, Stage, grows, start_late_blocks
from glocal.training.network import SelfDistillation, build_distillation, seeded
from glocal.training.optimiser import build_optimiser
from glocal.training.precision import Precision, choose_precision
from glocal.training.processes import is_first, launch
from glocal.training.run import Run
from glocal.training.run_folder import RunFolder
from glocal.training.saving import continue_from, keep_if_due, save
from glocal.training.trial import TrialStep
from glocal.training.weights import load_start
from glocal.training.whitening import start_whitened
from glocal.views.loader import ViewLoader, make_loader


def prepare(config: RunConfig, folder: RunFolder, resume: bool | Path) -> Run:
    """Build everything; with `resume`, in the state of the last checkpoint or of the one named.

    The folder of a new run is claimed last, so that what is refused before leaves nothing behind.

    Raises:
        GlocalError: when data, folder or settings don't fit.
    """
    if is_first():
        folder.check(resume=bool(resume))
    minutes = config.training.minutes
    clock = Clock(None if minutes is None else 60 * minutes)
    torch.set_float32_matmul_precision(config.speed.matmul)
    choose_device(config.speed.device, "speed.device")
    source = open_source(config.data)
    _check_batch(config, len(source))
    balance = None if config.balance is None else balance_weights(config.balance, source)
    fabric = launch(config.speed)
    _check_split(config, fabric)
    if resume:
        _first_does(fabric, lambda: folder.claim(resume=True))
    continued = bool(resume) and (isinstance(resume, Path) or folder.begun)
    run = _build(config, folder, fabric, source, clock, continued)
    run.balance = balance
    if resume:
        run.unreadable = folder.read_unreadable()
    if continued:
        _continue(run, resume)
        return run
    if resume:
        run.notes.append("There is no checkpoint yet; the run begins at its first step.")
    else:
        _first_does(fabric, lambda: folder.claim(resume=False))
    _first_does(fabric, lambda: _write_start(run))
    _seed(run)
    return run


def begin_again(run: Run) -> None:
    """Put a run before its first step, in place."""
    fresh, *_ = _make_model(run.config, run.fabric, run.source, run.precision, continued=False)
    run.model.student.load_state_dict(fresh.student.state_dict())
    run.model.teacher.load_state_dict(fresh.teacher.state_dict())
    run.model.objectives.load_state_dict(fresh.objectives.state_dict())
    run.optimiser.state.clear()
    run.done, run.sums = 0, {}
    _seed(run)


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
        weights=run.balance,
    )


# ------------------------------------------------------------------------------------------------------- what is built


def _build(
    config: RunConfig, folder: RunFolder, fabric: Fabric, source: ImageSource, clock: Clock, continued: bool
) -> Run:
    """The run before its first step; weights to start from are left out where a checkpoint's follow."""
    precision, cost = _try_a_step(config, source, fabric)
    settled = config.speed.model_copy(update={"precision": precision.name})
    config = config.model_copy(update={"speed": settled})
    model, notes, licence = _make_model(config, fabric, source, precision, continued)
    optimiser = build_optimiser(model, len(model.student.backbone.blocks), config.optimiser)
    guard = StepGuard(model.objectives).to(fabric.device)
    images = len(source)
    return Run(
        config, folder, fabric, source, model, optimiser, guard,
        steps=number_of_steps(config.training, images, cost), steps_per_epoch=images // config.training.batch_size,
        data_fingerprint=source.fingerprint() if fabric.global_rank == 0 else "",
        clock=clock, cost=cost, precision=precision, notes=notes, licence=licence,
    )  # fmt: skip


def _try_a_step(config: RunConfig, source: ImageSource, fabric: Fabric) -> tuple[Precision, StepCost]:
    """What the run computes in and what a step costs, seen on a step that is thrown away."""
    trial = TrialStep(config, source, fabric)
    precision = choose_precision(config.speed.precision, trial)
    trial.model.autocast = precision.autocast
    cost = cost_of_step(trial, config.training)
    if grows(config):
        cost = replace(cost, growing=GrowingCost(config, partial(_flops_of_stage, config, source, fabric)))
    return precision, cost


def _flops_of_stage(config: RunConfig, source: ImageSource, fabric: Fabric, stage: Stage) -> float:
    """Another trial for every stage, so that none has to be kept; asked for while the run lives, whose draws it leaves alone."""
    with torch.random.fork_rng():
        return TrialStep(config, source, fabric).flops(stage)


def _make_model(
    config: RunConfig, fabric: Fabric, source: ImageSource, precision: Precision, continued: bool
) -> tuple[SelfDistillation, list[str], str | None]:
    """Networks with their starting weights, those that training moves told from the rest, what is to be said of them, and
    the licence that they start from.
    """
    model, notes, licence = _build_model(config, fabric, precision), [], None
    if config.init is not None and not continued:
        report = load_start(model, config)
        notes, licence = [report.summary()], report.licence
    elif config.backbone.patch_embed_init == "whitened" and not continued:
        start_whitened(model, source, config)
    start_late_blocks(model, config)
    seeded(config, "adapt", lambda: adapt(model.student.backbone, model.teacher.backbone, config.adapt))
    return model, notes, licence


def _build_model(config: RunConfig, fabric: Fabric, precision: Precision) -> SelfDistillation:
    """Both networks and the objectives, on their device."""
    speed = config.speed
    model = build_distillation(config, precision.autocast)
    model.student.backbone.checkpoint_blocks = speed.checkpoint_blocks
    model.to(fabric.device)
    model.teacher.to(fabric.device)
    if speed.compile:
        model.student.compile_passes()
        model.teacher.compile_passes()
    return model


def _write_start(run: Run) -> None:
    origin = {"data_fingerprint": run.data_fingerprint, "licence": run.licence}
    run.folder.write_start(run.config, origin)
    write_image_names(run.folder.images, run.source)


def _seed(run: Run) -> None:
    """Stochastic depth draws from the global generator: every process needs other masks, a resumed run the next ones."""
    torch.manual_seed(run.config.seed * 1000 + run.fabric.global_rank)


def _check_batch(config: RunConfig, images: int) -> None:
    batch = config.training.batch_size
    if batch > images:
        raise TrainingError(
            f"training.batch_size={batch} is larger than the data set ({images} images in {config.data}). "
            f"Set training.batch_size to at most {images}."
        )


def _check_split(config: RunConfig, fabric: Fabric) -> None:
    training = config.training
    portions = fabric.world_size * training.accumulate
    if training.batch_size % portions:
        raise TrainingError(
            f"training.batch_size={training.batch_size} can't be split over {fabric.world_size} processes x "
            f"training.accumulate={training.accumulate}. Choose a multiple of {portions}."
        )


# ------------------------------------------------------------------------------------------------- where it goes on from


def _continue(run: Run, resume: bool | Path) -> None:
    """Put the run where the checkpoint was, and record what changed since."""
    chosen = isinstance(resume, Path)
    state, note = (
        (read_checkpoint(resume), "")
        if isinstance(resume, Path)
        else read_newest(run.folder.last, run.folder.previous)
    )
    run.notes += [note] if note else []
    continue_from(run, state, resume if isinstance(resume, Path) else run.folder.last)
    clock = run.clock
    clock.spent = state["seconds"]
    if clock.limit is not None:
        run.steps = run.done + max(0, round((clock.limit - clock.spent) / run.cost.seconds))
    before = written_config(state, run.folder.last)
    if before["optimiser"].get("learning_rate") != run.config.optimiser.learning_rate:
        run.retreats = 0
    _first_does(run.fabric, lambda: _record_continuation(run, state, before))
    if chosen or note:
        # The state gone on from becomes the last one. A damaged file is moved away, lest it be kept as the one before.
        if note and run.first and run.folder.last.exists():
            run.folder.last.replace(run.folder.checkpoints / "damaged.pt")
        save(run, run.done)
    else:
        keep_if_due(run, run.done)


def _record_continuation(run: Run, state: dict[str, Any], before: dict[str, Any]) -> None:
    folder, source = run.folder, run.source
    added = count_added(source, run.data_fingerprint, state, folder.images)
    if added:
        write_image_names(folder.images, source)
        run.notes.append(
            f"{added:,} images were added since the run was stopped; it goes on with all {len(source):,}. The plan of "
            f"{run.steps:,} steps stays."
        )
    changed = folder.write_resume(before, run.config, run.done, "resume")
    run.notes += [f"{key} changed from {old} to {new}." for key, (old, new) in changed.items()]


def _first_does(fabric: Fabric, act: Any) -> None:
    """Let the first process act; what it refuses ends all."""
    trouble = None
    if fabric.global_rank == 0:
        try:
            act()
        except TrainingError as error:
            trouble = str(error)
    trouble = gather_objects(trouble)[0]
    if trouble is not None:
        raise TrainingError(trouble)
