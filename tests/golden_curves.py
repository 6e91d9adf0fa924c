"""Losses of the first steps of every recipe, tiny and on synthetic views; `python tests/golden_curves.py` stores them anew.

A stored figure is a promise: a change of a loss, of views or of the optimiser that moves it is made on purpose, says so in
its commit, and stores the curves anew.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from conftest import make_views

from glocal.conformance.small_runs import frozen_model
from glocal.conformance.terms import SMALL_HEADS
from glocal.models.teacher import MovingAverage
from glocal.objectives.base import ObjectiveConfig
from glocal.recipes import AUTO, RECIPES, configure
from glocal.schedules import Progress, value_at
from glocal.training.config import RunConfig
from glocal.training.gradients import backward
from glocal.training.network import StepInput, build_distillation
from glocal.training.optimiser import build_optimiser, clip_gradients, learning_rate_schedule, set_schedules
from glocal.views.augment import augment
from glocal.views.batch import ViewBatch, Views
from glocal.views.groups import ViewGroup

STORED = Path(__file__).with_name("golden_curves.json")
STEPS, BATCH = 4, 4
TOLERANCE = 2e-3
"""Relative. Another processor's sums differ in the sixth digit; what counts as a change is 1 %."""
_SMALL = {"queue": 32, "memory": 24, "neighbours": 3, "storage": "fp32"}


def curve(recipe: str) -> list[float]:
    """The loss of each of the first steps, taken as the training loop takes them, in float32 on one thread."""
    # The frozen model of `distil` is made once a process and draws numbers when it is, so it comes before the seed.
    config = tiny(recipe)
    torch.manual_seed(0)
    model = build_distillation(config)
    optimiser = build_optimiser(model, model.student.backbone.depth, config.optimiser)
    average = MovingAverage(model.teacher, model.student)
    parameters = [p for p in model.parameters() if p.requires_grad]
    rate = learning_rate_schedule(config.optimiser, BATCH)
    losses = []
    for step in range(STEPS):
        progress = Progress(step, STEPS, STEPS)
        views = augment(
            coloured_views(config.views, step),
            config.views,
            config.backbone.patch_size,
            config.mean,
            config.std,
        )
        set_schedules(optimiser, config.optimiser, rate, progress)
        scalars = backward(model, StepInput(views, progress, watch=False))
        for frozen in model.frozen(progress):
            frozen.grad = None
        clip_gradients(parameters, config.optimiser, progress)
        model.finish_step()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        average.update(value_at(config.teacher.momentum, progress))
        losses.append(scalars["loss"].item())
    return losses


def tiny(recipe: str) -> RunConfig:
    """The recipe's first preset with its own terms, weights and operations, all of it small."""
    preset = next(name for name in RECIPES[recipe].presets if name != AUTO)
    config = configure(recipe, data="DATA", out="unused", preset=preset)
    backbone = {
        "size": "micro",
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "patch_size": 4,
        "image_size": 32,
    }
    teacher = {"frozen": frozen_model()} if recipe == "distil" else {}
    return config.model_copy(
        update={
            "backbone": config.backbone.model_copy(update=backbone),
            "views": {name: _small_views(name, group) for name, group in config.views.items()},
            "objectives": {name: _small_term(term) for name, term in config.objectives.items()},
            "teacher": config.teacher.model_copy(update=teacher),
            "training": config.training.model_copy(update={"batch_size": BATCH}),
        }
    )


def _small_views(name: str, group: ViewGroup) -> ViewGroup:
    return group.model_copy(update={"size": 16 if name == "local" else 32, "count": min(group.count, 2)})


def _small_term(term: ObjectiveConfig) -> ObjectiveConfig:
    update: dict[str, object] = {n: v for n, v in _SMALL.items() if n in type(term).model_fields}
    head = getattr(term, "head", None)
    if type(head) in SMALL_HEADS:
        update["head"] = SMALL_HEADS[type(head)]
    return term.model_copy(update=update)


def coloured_views(groups: Mapping[str, ViewGroup], step: int) -> Views:
    """Bytes, as they come from the loader: waves of another length and colour in every image."""
    views = make_views(BATCH, dict(groups), seed=step)
    return replace(views, groups={name: _waves(batch, step) for name, batch in views.groups.items()})


def _waves(batch: ViewBatch, step: int) -> ViewBatch:
    images, count, channels, height, width = batch.pixels.shape
    across = torch.arange(width) + torch.arange(height)[:, None]
    length = (2 + torch.arange(images * count * channels) % 7).view(images, count, channels, 1, 1)
    pixels = 127 + 120 * torch.sin(across / length + step)
    return ViewBatch(pixels.to(torch.uint8), batch.box, batch.flip, batch.strong)


def is_same(found: Sequence[float], stored: Sequence[float]) -> bool:
    """Whether two curves agree at every step."""
    return len(found) == len(stored) and all(
        math.isclose(ours, theirs, rel_tol=TOLERANCE) for ours, theirs in zip(found, stored, strict=True)
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    names = sys.argv[1:] or list(RECIPES)
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    curves = {name: [float(f"{loss:.6g}") for loss in curve(name)] for name in names}
    merged = {name: (stored | curves)[name] for name in RECIPES if name in stored | curves}
    lines = ",\n".join(f'  "{name}": {json.dumps(losses)}' for name, losses in merged.items())
    STORED.write_text(f"{{\n{lines}\n}}\n")
