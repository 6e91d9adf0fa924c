"""The training loop: prepare a run, then one linear pass over its steps."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor

from glocal.data import ImageSource, open_source
from glocal.errors import TrainingError
from glocal.extraction.embedding_statistics import effective_rank
from glocal.models.encoder import LoadReport
from glocal.models.teacher import MovingAverage
from glocal.schedules import Progress, value_at
from glocal.training.checkpoint import load_checkpoint, save_checkpoint
from glocal.training.config import RunConfig
from glocal.training.metrics import Display, MetricsLog, Stopwatch, return_freed_memory
from glocal.training.monitor import CollapseMonitor, check_finite
from glocal.training.network import SelfDistillation, StepInput, build_distillation
from glocal.training.optimiser import build_optimiser, clip_gradients, learning_rate_schedule, set_schedules
from glocal.training.outputs import Probe, export_teacher, label_purity, load_start, training_probes
from glocal.training.run_folder import RunFolder
from glocal.training.signals import stop_requested
from glocal.views.augment import augment
from glocal.views.batch import Views
from glocal.views.loader import make_loader


@dataclass
class Run:
    """Everything a run holds while it lives."""

    config: RunConfig
    folder: RunFolder
    fabric: Fabric
    source: ImageSource
    model: SelfDistillation
    wrapped: Any
    optimiser: torch.optim.Optimizer
    steps: int
    steps_per_epoch: int
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
        run = _prepare(config, folder, resume)
        if at_start is not None and run.first and not resume:
            at_start(config, run.source, folder.pictures)
        _train(run)
    return folder.path


# ---------------------------------------------------------------------------------------------------- preparation


def _prepare(config: RunConfig, folder: RunFolder, resume: bool) -> Run:
    torch.set_float32_matmul_precision(config.speed.matmul)
    source = open_source(config.data)
    batch, images = config.training.batch_size, len(source)
    if batch > images:
        raise TrainingError(
            f"training.batch_size={batch} is larger than the data set ({images} images in {config.data}). "
            f"Set training.batch_size to at most {images}."
        )
    fabric = Fabric(
        accelerator=config.speed.device,
        devices=config.speed.devices,
        # Statistics and queues are equal on all processes by construction: DDP must not send them round at every step.
        strategy=DDPStrategy(broadcast_buffers=False)
        if config.speed.devices > 1 or "RANK" in os.environ
        else "auto",
    )
    fabric.launch()
    if batch % (fabric.world_size * config.training.accumulate):
        raise TrainingError(
            f"training.batch_size={batch} can't be split over {fabric.world_size} processes x training.accumulate="
            f"{config.training.accumulate}. Choose a multiple of {fabric.world_size * config.training.accumulate}."
        )
    model = build_distillation(config, torch.bfloat16 if config.speed.precision == "bf16" else None)
    report = load_start(model, config.init) if config.init is not None and not resume else None
    model.student.backbone.checkpoint_blocks = config.speed.checkpoint_blocks
    model.to(fabric.device)
    model.teacher.to(fabric.device)
    if config.speed.compile:
        for network in (model.student, model.teacher):
            for block in network.backbone.blocks:
                block.compile(dynamic=False)
    optimiser = build_optimiser(model, len(model.student.backbone.blocks), config.optimiser)
    steps_per_epoch = images // batch
    steps = config.training.steps or max(1, round(config.training.epochs * steps_per_epoch))
    run = Run(config, folder, fabric, source, model, model, optimiser, steps, steps_per_epoch, start=report)
    if resume:
        run.done = load_checkpoint(folder.last, model, optimiser, images)
    elif run.first:
        folder.write_start(config)
    # Stochastic depth draws from the global generator; every process needs other masks, a resumed run the next ones.
    if not resume:
        torch.manual_seed(config.seed * 1000 + fabric.global_rank)
    # Fabric wraps the module for gradient averaging only; autocast is ours, so that statistics stay in float32.
    run.wrapped = fabric.setup_module(model) if fabric.world_size > 1 else model
    return run


# ------------------------------------------------------------------------------------------------------- the loop


def _train(run: Run) -> None:
    config, model, optimiser = run.config, run.model, run.optimiser
    log = MetricsLog(run.folder.metrics, enabled=run.first)
    log.cut_after(run.done)
    probes = training_probes(config, run.source) if run.first else []
    probe_every = config.probe.every or max(1, run.steps // 10)
    rate = learning_rate_schedule(config.optimiser, config.training.batch_size)
    parameters = [p for p in model.parameters() if p.requires_grad]
    average = MovingAverage(model.teacher, model.student)
    monitor, watch = CollapseMonitor(), Stopwatch()
    running: dict[str, Tensor] = {}
    with Display(run.steps, run.done, enabled=run.first) as display, stop_requested() as stop:
        _introduce(run, display)
        if probes and run.done == 0:
            _record_probes(run, probes, log, display, 0)
        batches = iter(_loader(run))
        began = time.perf_counter()
        step = run.done
        while step < run.steps:
            # ---- data
            with watch.wait():
                loaded = next(batches)
            _note_unreadable(run, loaded.unreadable, display)
            views = augment(loaded.views.to(run.fabric.device), config.views, config.backbone.patch_size)

            # ---- schedules
            progress = run.progress(step)
            logging = (step + 1) % config.training.log_every == 0 or step + 1 == run.steps
            learning_rate, decay = set_schedules(optimiser, config.optimiser, rate, progress)
            momentum = value_at(config.teacher.momentum, progress)

            # ---- loss and gradients
            scalars = _backward(run, views, progress, logging)
            for frozen in model.frozen(progress):
                frozen.grad = None
            norm = clip_gradients(parameters, config.optimiser, progress)

            # ---- update: the objectives' state, the student, the teacher
            model.finish_step()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            average.update(momentum)
            step += 1
            watch.images += config.training.batch_size
            display.advance(step)
            for name in [n for n in scalars if n in config.objectives or n == "loss"]:
                running[name] = running.get(name, 0.0) + scalars[name]

            # ---- records: the one place that waits for the device
            if logging:
                steps = (step - 1) % config.training.log_every + 1
                record: dict[str, Any] = {"step": step, "epoch": round(step / run.steps_per_epoch, 4)}
                record |= _read(run, scalars, running, min(steps, step - run.done), norm)
                check_finite(record["loss"], step)
                record |= label_purity(run.model, run.source)
                record |= {
                    "learning_rate": learning_rate,
                    "weight_decay": decay,
                    "teacher_momentum": momentum,
                }
                left = (time.perf_counter() - began) / (step - run.done) * (run.steps - step)
                record |= watch.read() | {"seconds_left": left, "unreadable": len(run.unreadable)}
                running = {}
                log.write(record)
                display.record(record)
                return_freed_memory()
                for message in monitor.look(record, warm=step > run.steps // 10):
                    display.say(message, style="bold yellow")
            if probes and (step % probe_every == 0 or step == run.steps):
                _record_probes(run, probes, log, display, step)
            stopping = (
                logging and _agree(run, stop.requested) if run.fabric.world_size > 1 else stop.requested
            )
            if stopping or step % config.training.checkpoint_every == 0 or step == run.steps:
                _save(run, step, running)
                if stopping:
                    display.say(f"Stopped at step {step}; resume=true continues.")
                    break
    log.close()
    if run.first:
        export_teacher(run.folder.export, model.teacher.backbone, config, step)


def _backward(run: Run, views: Views, progress: Progress, watch: bool) -> dict[str, Tensor]:
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


def _loader(run: Run):  # type: ignore[no-untyped-def]
    config = run.config
    workers = config.speed.workers
    if workers is None:
        cores = os.cpu_count() or 1
        workers = min(16, cores - 1) if run.fabric.device.type == "cuda" else 1
    return make_loader(
        run.source,
        config.views,
        batch_size=config.training.batch_size,
        seed=config.seed,
        workers=workers,
        start_step=run.done,
        total_steps=run.steps,
        rank=run.fabric.global_rank,
        world_size=run.fabric.world_size,
        shared=config.crops,
        at_least=config.speed.decode_at_least,
        keep_bytes=config.speed.keep_decoded_mb << 20,
        pin_memory=run.fabric.device.type == "cuda",
    )


# ------------------------------------------------------------------------------------------- records and checkpoints


def _read(
    run: Run, scalars: dict[str, Tensor], running: dict[str, Tensor], steps: int, norm: Tensor
) -> dict[str, float]:
    """Bring this record's figures to the host: mean losses since the last record, the rest as of this step."""
    cls = scalars.pop("teacher_cls", None)
    names = list(scalars)
    values = torch.stack(
        [(running[n] / steps if n in running else scalars[n]).float().reshape(()) for n in names]
        + [norm.float().cpu() if norm.device != scalars["loss"].device else norm.float()]
    )
    if run.fabric.world_size > 1:
        values = run.fabric.all_reduce(values, reduce_op="mean")  # type: ignore[assignment]
    figures = dict(zip([*names, "gradient_norm"], values.tolist(), strict=True))
    if cls is not None:
        figures["effective_rank"] = float(effective_rank(cls))
    return figures


def _save(run: Run, step: int, running: dict[str, Tensor]) -> None:
    if "loss" in running:
        check_finite(float(running["loss"]), step)
    images = len(run.source)
    save_checkpoint(run.folder.last, run.model, run.optimiser, step, images)
    every = run.config.training.keep_every
    if every is not None and step % every == 0:
        save_checkpoint(run.folder.last.with_name(f"step-{step}.pt"), run.model, run.optimiser, step, images)


def _record_probes(run: Run, probes: list[Probe], log: MetricsLog, display: Display, step: int) -> None:
    numbers = {name: value for probe in probes for name, value in probe(run.model.teacher.backbone).items()}
    log.write({"step": step, **numbers})
    display.say(f"step {step} · " + " · ".join(f"{name} {value:.4g}" for name, value in numbers.items()))


def _note_unreadable(run: Run, found: list[tuple[str, str]], display: Display) -> None:
    """List every image that can't be decoded once, and say so at the first."""
    new = {key: reason for key, reason in found if key not in run.unreadable}
    if new:
        if not run.unreadable:
            display.say(
                f"Some images can't be decoded; they are skipped and listed in {run.folder.unreadable.name}.",
                style="yellow",
            )
        run.unreadable |= new
        with run.folder.unreadable.open("a") as file:
            file.writelines(f"{key}\t{reason}\n" for key, reason in new.items())


def _introduce(run: Run, display: Display) -> None:
    parameters = sum(p.numel() for p in run.model.student.parameters())
    display.say(
        f"{run.config.recipe} on {run.source.name}: {len(run.source):,} images, {run.steps:,} steps of "
        f"{run.config.training.batch_size}, {parameters / 1e6:.1f} M parameters, "
        f"{run.fabric.world_size} process(es) on {run.fabric.device.type} → {run.folder.path}"
    )
    if run.start is not None:
        display.say(run.start.summary())
    if run.done:
        display.say(f"Continuing after step {run.done:,}.")


def _agree(run: Run, requested: bool) -> bool:
    """Whether any process was asked to stop."""
    flag = torch.tensor(float(requested), device=run.fabric.device)
    return bool(run.fabric.all_reduce(flag, reduce_op="sum") > 0)  # type: ignore[operator]
