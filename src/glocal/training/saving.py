"""When a run's state is written, and to which files."""

from __future__ import annotations

from glocal.training.checkpoint import save_checkpoint
from glocal.training.preparation import Run


def due(run: Run, step: int) -> bool:
    """Whether the state of after this step is written: at both intervals, and at the end."""
    training = run.config.training
    return step == run.steps or any(
        every is not None and step % every == 0 for every in (training.checkpoint_every, training.keep_every)
    )


def save(run: Run, step: int) -> None:
    """Write `last.pt`, and `step-N.pt` where it is to be kept. Every process calls it; the first writes."""
    images = len(run.source)
    save_checkpoint(run.folder.last, run.model, run.optimiser, step, images)
    every = run.config.training.keep_every
    if every is not None and step % every == 0:
        save_checkpoint(run.folder.last.with_name(f"step-{step}.pt"), run.model, run.optimiser, step, images)
