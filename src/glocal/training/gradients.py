"""The gradients of one step. The graph is cut at the backbone's features, so that heads and losses see the whole step.

With micro-batches only the backbone works in portions: (1) every portion's features without a graph, teacher's and
student's; (2) all heads and losses once, on the features of the whole step, and backwards to these; (3) the student's
backbone again, portion by portion, now with a graph, and backwards from the features' gradients. So terms that couple
the images of a step (Sinkhorn's balance, the mean over matches, contrasts) are the same step as without micro-batches,
whatever they compute. Cost: one more forward pass of the student's backbone, a quarter to a third of a step's products; memory
is that of one portion's graph, plus the features of the step and what heads and losses hold of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from glocal.models.features import Features
from glocal.training.generators import generator_state, restore_generators
from glocal.training.network import SelfDistillation, StepInput

GroupFeatures = dict[str, Features]


def backward(model: SelfDistillation, step: StepInput, micro_batches: int = 1) -> dict[str, Tensor]:
    """Add the gradients of one step to the student's parameters; return its detached scalars, "loss" among them.

    Departure from one large batch, of stochastic depth only: every portion draws which of its own samples skip a block.

    Args:
        model: both networks and the objectives.
        step: all images of this process's step.
        micro_batches: how many portions the backbone works in; 1 keeps the first pass's graph instead of repeating it.
    """
    portions, device = step.views.split(micro_batches), step.views.device
    drawn: list[dict[str, Tensor]] = []
    passes: list[GroupFeatures] = []
    teacher = _joined([model.teacher_features(views) for views in portions])
    frozen = _joined([model.frozen_features(views) for views in portions])
    with torch.set_grad_enabled(micro_batches == 1):
        for views in portions:
            drawn.append(generator_state(device))
            passes.append(model.student_features(views, step.progress))
    leaves = {name: _leaf(features) for name, features in _joined(passes).items()}
    loss, scalars = model.loss(leaves, teacher, step, frozen)
    loss.backward()
    if micro_batches == 1:
        _pull(passes[0], leaves, slice(None))
    else:
        _repeat(model, step, micro_batches, drawn, leaves)
    return scalars | {"loss": loss.detach()}


def _repeat(
    model: SelfDistillation,
    step: StepInput,
    micro_batches: int,
    drawn: Sequence[dict[str, Tensor]],
    leaves: GroupFeatures,
) -> None:
    """The student's backbone once more, with the same random draws, and backwards from the features' gradients."""
    portions, device = step.views.split(micro_batches), step.views.device
    afterwards = generator_state(device)
    for number, (views, state) in enumerate(zip(portions, drawn, strict=True)):
        restore_generators(state, device)
        rows = slice(number * len(views), (number + 1) * len(views))
        _pull(model.student_features(views, step.progress), leaves, rows)
    restore_generators(afterwards, device)


def _pull(features: GroupFeatures, leaves: GroupFeatures, rows: slice) -> None:
    """Backwards through the backbone from the gradients that the losses left at (these rows of) the features."""
    roots, gradients = [], []
    for name, group in features.items():
        for field, tensor in _tensors(group):
            gradient = getattr(leaves[name], field).grad
            if gradient is not None:
                roots.append(tensor)
                gradients.append(gradient[rows])
    if roots:
        torch.autograd.backward(roots, gradients)


def _joined(passes: Sequence[GroupFeatures]) -> GroupFeatures:
    """The features of all portions as of one batch."""
    joined = dict(passes[0])
    if len(passes) > 1:
        for name, first in joined.items():
            whole: dict[str, Any] = {
                f: torch.cat([getattr(one[name], f) for one in passes]) for f, _ in _tensors(first)
            }
            joined[name] = replace(first, **whole)
    return joined


def _leaf(features: Features) -> Features:
    """The same numbers as the beginning of a graph."""
    cut: dict[str, Any] = {
        f: t.detach().requires_grad_() for f, t in _tensors(features) if t.is_floating_point()
    }
    return replace(features, **cut)


def _tensors(features: Features) -> Iterator[tuple[str, Tensor]]:
    for field in fields(features):
        value = getattr(features, field.name)
        if isinstance(value, Tensor):
            yield field.name, value
