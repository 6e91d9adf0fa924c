"""When a run's state is written, and to which files."""

from __future__ import annotations

import json

from glocal.atomic_files import write_atomically
from glocal.training.checkpoint import Position, save_checkpoint
from glocal.training.preparation import Run


def due(run: Run, step: int) -> bool:
    """Whether the state of after this step is written: at both intervals, and at the end."""
    training = run.config.training
    return step == run.steps or any(
        every is not None and step % every == 0 for every in (training.checkpoint_every, training.keep_every)
    )


def save(run: Run, step: int) -> None:
    """Write `last.pt`, what the run has used, and `step-N.pt` where it is to be kept. Every process calls it; the first writes."""
    images, at = len(run.source), Position(step, run.clock.used())
    save_checkpoint(run.folder.last, run.model, run.optimiser, at, images)
    every = run.config.training.keep_every
    if every is not None and step % every == 0:
        save_checkpoint(run.folder.last.with_name(f"step-{step}.pt"), run.model, run.optimiser, at, images)
    if run.first:
        _write_summary(run, at)


def _write_summary(run: Run, at: Position) -> None:
    """What the run has used up to here, in one small file."""
    cost, batch = run.cost, run.config.training.batch_size
    summary = {
        "recipe": run.config.recipe, "data": run.config.data, "steps": at.step, "steps_planned": run.steps,
        "epochs": at.step / run.steps_per_epoch, **cost.so_far(at.step, batch), "flops_per_step": cost.flops,
        "seconds": at.seconds, "precision": run.precision.name, "precision_reason": run.precision.reason,
    }  # fmt: skip
    write_atomically(run.folder.summary, lambda file: file.write(json.dumps(summary, indent=2).encode()))
