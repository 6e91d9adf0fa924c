"""Micro-batches are the same step for every term of the union; random draws are replayed; means over processes."""

from __future__ import annotations

import dataclasses
import typing

import pytest
import torch
from conftest import make_views, small_config
from test_objectives import PROGRESS, TERMS, build

from glocal.conformance.terms import micro_batches_are_the_same_step
from glocal.objectives import AnyObjective
from glocal.training.gradients import backward
from glocal.training.network import SelfDistillation, StepInput, build_distillation


def gradients(model: SelfDistillation) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.student.named_parameters() if p.grad is not None}


def test_every_term_of_the_union_is_in_the_suite() -> None:
    union = typing.get_args(typing.get_args(AnyObjective)[0])
    assert {type(settings) for settings in TERMS.values()} == set(union)


@pytest.mark.parametrize("name", TERMS)
def test_micro_batches_are_the_same_step(name: str) -> None:
    micro_batches_are_the_same_step(TERMS[name])


@pytest.mark.parametrize("name", TERMS)
def test_the_cut_graph_gives_the_gradients_of_the_whole_one(name: str) -> None:
    cut, whole = build(name), build(name)
    step = StepInput(make_views(4, seed=5), PROGRESS, watch=True)
    backward(cut, step)
    whole(dataclasses.replace(step, watch=False))[0].backward()
    for parameter, gradient in gradients(whole).items():
        torch.testing.assert_close(gradients(cut)[parameter], gradient, rtol=1e-4, atol=1e-6, msg=parameter)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_random_draws_are_replayed_and_the_generator_goes_on(autocast: torch.dtype | None) -> None:
    """With stochastic depth: the gradients of the portions' own graphs, kept instead of recomputed."""
    config = small_config()
    config = config.model_copy(update={"backbone": config.backbone.model_copy(update={"drop_path": 0.5})})
    repeated, kept = build_distillation(config, autocast), build_distillation(config, autocast)
    views = make_views(6, seed=1)
    step = StepInput(views, PROGRESS, watch=False)
    torch.manual_seed(5)
    backward(repeated, step, micro_batches=2)
    after = torch.rand(1)
    torch.manual_seed(5)
    passes = [kept.student_features(part, PROGRESS) for part in views.split(2)]
    after_kept = torch.rand(1)
    joined = {
        name: dataclasses.replace(
            first,
            cls=torch.cat([one[name].cls for one in passes]),
            patches=torch.cat([one[name].patches for one in passes]),
            tokens_before_norm=torch.cat([one[name].tokens_before_norm for one in passes]),
        )
        for name, first in passes[0].items()
    }
    kept.loss(joined, kept.teacher_features(views), step)[0].backward()
    assert torch.equal(after, after_kept)
    for parameter, gradient in gradients(kept).items():
        relative, absolute = (1e-4, 1e-6) if autocast is None else (0.05, 1e-3)
        torch.testing.assert_close(
            gradients(repeated)[parameter], gradient, rtol=relative, atol=absolute, msg=parameter
        )


def test_the_pull_at_tokens_before_the_norm_is_seen() -> None:
    """`group-local-reference` reads nothing but the residual stream."""
    model = build("group-local-reference")
    step = StepInput(make_views(6, seed=2), PROGRESS, watch=True)
    scalars = backward(model, step)
    assert scalars["term.feature_gradient"] > 0
