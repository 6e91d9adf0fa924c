"""The training state: what it is, how it is written and how it comes back bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from glocal.atomic_files import write_atomically
from glocal.distributed import rank, world_size
from glocal.errors import TrainingError
from glocal.training.generators import generator_state, restore_generators
from glocal.training.network import SelfDistillation

FORMAT = 1


class Position(NamedTuple):
    """How far a run has come: optimiser steps, and seconds of all processes that worked on it."""

    step: int
    seconds: float


def save_checkpoint(
    path: Path, model: SelfDistillation, optimiser: torch.optim.Optimizer, at: Position, images: int
) -> None:
    """Write everything the next step depends on. Every process calls it; the first writes.

    Augmentation has no state (it is a pure function of seed, epoch and image), the loader's position is the step. What
    remains is weights, objectives' buffers, the optimiser and torch's generators, which stochastic depth draws from.
    """
    generators = _gather_objects(generator_state(_device(model)))
    if rank() != 0:
        return
    state = {
        "format": FORMAT,
        "step": at.step,
        "seconds": at.seconds,
        "images_of_data": images,
        "student": model.student.state_dict(),
        "teacher": model.teacher.state_dict(),
        "objectives": model.objectives.state_dict(),
        "optimiser": optimiser.state_dict(),
        "generators": generators,
    }
    write_atomically(path, lambda file: torch.save(state, file))


def load_checkpoint(
    path: Path, model: SelfDistillation, optimiser: torch.optim.Optimizer, images: int
) -> Position:
    """Restore in place and return how far the run had come.

    Order matters: (1) weights, (2) objectives, (3) optimiser, (4) generators last, since building anything draws.

    Raises:
        TrainingError: when the file is missing, of another format, or of a run over another number of images, whose
            order could not be continued.
    """
    if not path.exists():
        raise TrainingError(
            f"There is no checkpoint at {path}; the run stopped before its first. Start again without resume=true in a new out=."
        )
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state.get("format") != FORMAT:
        raise TrainingError(
            f"{path} has checkpoint format {state.get('format')}; this version of glocal reads {FORMAT}."
        )
    if state["images_of_data"] != images:
        raise TrainingError(
            f"The run was on {state['images_of_data']} images and data= now holds {images}; its order can't be continued. "
            "Restore the data, or start a new run with init= set to this one."
        )
    model.student.load_state_dict(state["student"])
    model.teacher.load_state_dict(state["teacher"])
    model.objectives.load_state_dict(state["objectives"])
    optimiser.load_state_dict(state["optimiser"])
    generators = state["generators"]
    if len(generators) == world_size():
        restore_generators(generators[rank()], _device(model))
    return Position(int(state["step"]), float(state.get("seconds", 0.0)))


def _gather_objects(value: Any) -> list[Any]:
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def _device(model: SelfDistillation) -> torch.device:
    return next(model.parameters()).device
