"""When a run's state is written and to which files, and how a run is put where a checkpoint was."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from glocal.atomic_files import link_or_copy, write_atomically
from glocal.distributed import average_, gather_objects, rank, world_size
from glocal.errors import GlocalError, TrainingError
from glocal.outside import reading
from glocal.training.checkpoint import FORMAT, refuse_another_backbone, restore
from glocal.training.generators import generator_state, restore_generators
from glocal.training.run import Run
from glocal.training.weights import export_teacher, view_side


def save(run: Run, step: int) -> None:
    """Write `last.pt`; the one before stays as `previous.pt`. A step that is to be kept stays as `step-N.pt`, with an export.

    Every process calls it; the first writes.
    """
    generators = gather_objects(generator_state(run.fabric.device))
    sums = {name: total.clone() for name, total in run.sums.items()}
    average_([*sums.values()])
    if not run.first:
        return
    folder, state = run.folder, _state(run, step) | {"generators": generators, "sums": sums}
    write_atomically(folder.last, lambda file: torch.save(state, file), keep=folder.previous)
    keep_if_due(run, step)
    _write_summary(run, state)


def keep_if_due(run: Run, step: int) -> None:
    """Give the last checkpoint a name of its own at a step that is to be kept, and export its teacher.

    Again when a run goes on: it may have been killed between its checkpoint and this.
    """
    every = run.config.training.keep_every
    if run.first and every is not None and step % every == 0:
        name = f"step-{step}"
        link_or_copy(run.folder.last, run.folder.last.with_name(f"{name}.pt"))
        origin = run.folder.read_origin()
        export_teacher(run.folder.export / name, run.model.teacher.backbone, run.config, step, origin)


def save_if_due(run: Run, step: int, stopping: bool) -> None:
    """Save at both intervals, at the end, and when the run stops; at an interval not amid bad steps, whose weights may be
    the cause.
    """
    training = run.config.training
    intervals = [every for every in (training.checkpoint_every, training.keep_every) if every is not None]
    at_interval = any(step % every == 0 for every in intervals)
    if stopping or step == run.steps or (at_interval and not run.guard.in_a_row):
        save(run, step)


def continue_from(run: Run, state: dict[str, Any], path: Path) -> None:
    """Put a run where a checkpoint was: weights, the objectives' state, the optimiser's, the plan, generators.

    Augmentation has no state (it is a pure function of seed, epoch and image) and the loader's position is the step. The
    plan, how many steps there are in all and in an epoch, stays also when images were added.

    Raises:
        TrainingError: when the checkpoint is of another model.
    """
    refuse_another_backbone(state, path, run.config)
    restore(state, path, run.model, run.optimiser)
    with reading(path, "this run's state", TrainingError, "Choose another checkpoint with resume=."):
        run.guard.load_state_dict(state["guard"])
        if len(state["generators"]) == world_size():
            restore_generators(state["generators"][rank()], run.fabric.device)
        run.sums = {name: total.to(run.fabric.device) for name, total in state.get("sums", {}).items()}
    run.done, run.steps, run.steps_per_epoch = state["step"], state["steps"], state["steps_per_epoch"]
    run.retreats = state["retreats"]


@contextlib.contextmanager
def saved_on_error(run: Run, step: int) -> Iterator[None]:
    """Write a checkpoint when the body, in which no step is under way, fails with an error of ours.

    With several processes the others can't take part, and the last checkpoint stays.
    """
    try:
        yield
    except GlocalError:
        if world_size() == 1 and step > run.done:
            save(run, step)
        raise


def _state(run: Run, step: int) -> dict[str, Any]:
    """Everything the next step depends on, and what `glocal.load` needs to know of the backbone."""
    config = run.config
    return {
        "format": FORMAT,
        "config": config.model_dump_json(),
        "mean": list(config.mean),
        "std": list(config.std),
        "image_size": view_side(config),
        "step": step,
        "seconds": run.clock.used(),
        "steps": run.steps,
        "steps_per_epoch": run.steps_per_epoch,
        "retreats": run.retreats,
        "images_of_data": len(run.source),
        "data_fingerprint": run.data_fingerprint,
        "student": run.model.student.state_dict(),
        "teacher": run.model.teacher.state_dict(),
        "objectives": run.model.objectives.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "guard": run.guard.state_dict(),
    }


def _write_summary(run: Run, state: dict[str, Any]) -> None:
    """What the run has used up to here, in one small file."""
    cost, batch, step = run.cost, run.config.training.batch_size, state["step"]
    summary = {
        "recipe": run.config.recipe, "data": run.config.data, "steps": step, "steps_planned": run.steps,
        "epochs": step / run.steps_per_epoch, **cost.so_far(run.progress(step), batch), "flops_per_step": cost.flops,
        "seconds": state["seconds"], "precision": run.precision.name, "precision_reason": run.precision.reason,
    }  # fmt: skip
    write_atomically(run.folder.summary, lambda file: file.write(json.dumps(summary, indent=2).encode()))
