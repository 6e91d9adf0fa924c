"""Masked patches: what is hidden, that it is hidden, and both terms against slow NumPy versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import GROUPS, SMALL_HEAD, make_views, small_config
from narrowing import present

from glocal.errors import ConfigError
from glocal.objectives import ImageLevelConfig, MaskedAlignmentConfig, MaskedPatchesConfig
from glocal.objectives.base import ObjectiveConfig
from glocal.objectives.by_contrast.projection import ProjectionConfig
from glocal.objectives.masks import MaskConfig, draw_masks
from glocal.schedules import Progress, Schedule
from glocal.training.network import SelfDistillation, StepInput, build_distillation
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup
from glocal.views.photometric.warping import Rotate

PROGRESS = Progress(step=50, total_steps=100, steps_per_epoch=10)
MASKS = MaskConfig(share=0.7, ratio=(0.2, 0.6))
PROTOTYPES = MaskedPatchesConfig(head=SMALL_HEAD, masks=MASKS)
ALIGNMENT = MaskedAlignmentConfig(head=ProjectionConfig(hidden=24, out_dim=8), masks=MASKS)


def build(groups: dict[str, ViewGroup] = GROUPS, **objectives: ObjectiveConfig) -> SelfDistillation:
    model = build_distillation(small_config(views=groups, objectives=objectives))
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            noise = torch.Generator().manual_seed(parameter.numel())
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
        model.student.get_parameter("mask_token").normal_(generator=torch.Generator().manual_seed(0))
    return model


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


def slow_term(
    model: SelfDistillation,
    views: Views,
    groups: dict[str, ViewGroup],
    compare: Callable[[np.ndarray, np.ndarray], float],
) -> float:
    """One masked patch at a time: mean over its view's masked patches, then over all views."""
    student = model.student_features(views, PROGRESS)["global"]
    assert student.masked is not None
    teacher = model.teacher_features(views)["global"]
    heads = [network.heads["term"] for network in (model.student, model.teacher)]
    total = 0.0
    for image in range(len(views)):
        for view in range(2):
            hidden = np.flatnonzero(student.masked[image, view])
            seen = range(16) if student.kept is None else student.kept[image, view].tolist()
            terms = []
            for row, patch in enumerate(seen):
                if patch in hidden:
                    tokens = (student.patches[image, view, row], teacher.patches[image, view, patch])
                    s, t = (h(x).detach().double().numpy() for h, x in zip(heads, tokens, strict=True))
                    terms.append(compare(s, t))
            total += np.mean(terms) if terms else 0.0
    return float(total / (len(views) * 2))


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_prototype_loss_equals_a_loop(keep: float) -> None:
    groups = GROUPS | {"global": GROUPS["global"].model_copy(update={"keep_patches": keep})}
    model = build(groups, term=PROTOTYPES)
    centre = torch.linspace(-0.2, 0.2, 24)
    model.objectives["term"].get_buffer("centre.centre").copy_(centre)
    views = make_views(5, groups, seed=1)
    loss, _ = model(StepInput(views, PROGRESS, False))

    def cross_entropy(s: np.ndarray, t: np.ndarray) -> float:
        return float(-(softmax((t - centre.double().numpy()) / 0.04) * np.log(softmax(s / 0.1))).sum())

    assert loss.item() == pytest.approx(slow_term(model, views, groups, cross_entropy), rel=1e-5)


def test_alignment_equals_a_loop() -> None:
    model = build(term=ALIGNMENT)
    views = make_views(5, seed=2)
    loss, _ = model(StepInput(views, PROGRESS, False))
    assert loss.item() == pytest.approx(slow_term(model, views, GROUPS, lambda s, t: -(s @ t)), rel=1e-5)


def test_what_is_hidden_does_not_reach_the_student() -> None:
    """Other pixels under the masks change nothing but what the teacher says."""
    model = build(term=PROTOTYPES)
    views = make_views(4, seed=3)
    masked = present(model.student_features(views, PROGRESS)["global"].masked)
    hidden = masked.view(4, 2, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, None]
    group = views.groups["global"]
    pixels = torch.where(hidden, torch.rand_like(group.pixels), group.pixels)
    other = replace(
        views, groups=views.groups | {"global": type(group)(pixels, group.box, group.flip, group.strong)}
    )
    assert masked.any() and not masked.all()
    ours, theirs = (model.student_features(v, PROGRESS)["global"] for v in (views, other))
    torch.testing.assert_close(ours.patches, theirs.patches)
    whole, changed = (model.teacher_features(v)["global"] for v in (views, other))
    assert not torch.allclose(whole.patches, changed.patches)


@pytest.mark.parametrize("shape", ["block", "random"])
def test_masks_have_the_share_and_ratio_asked_for(shape: str) -> None:
    masks = draw_masks(torch.arange(4000), (12, 14), MaskConfig(share=0.5, ratio=(0.1, 0.5), shape=shape))
    ratio = masks.float().mean(dim=1)
    masked = ratio[ratio > 0]
    assert 0.47 < len(masked) / 4000 < 0.53
    assert ratio.max() <= 0.5 and masked.min() > (0.05 if shape == "block" else 0.09)
    assert masked.mean().item() == pytest.approx(0.3, abs=0.02 if shape == "random" else 0.04)
    # Corners least: blocks lie within the view.
    assert (masks.float().mean(dim=0) > 0.01).all()


def test_blocks_hang_together() -> None:
    """Of a block's patches most have a masked neighbour to the right; of random ones as many as the ratio says."""
    alone = MaskConfig(share=1.0, ratio=(0.3, 0.3))
    beside = {}
    for shape in ("block", "random"):
        mask = draw_masks(torch.arange(500), (12, 12), alone.model_copy(update={"shape": shape})).view(
            -1, 12, 12
        )
        beside[shape] = (mask[:, :, 1:] & mask[:, :, :-1]).sum() / mask[:, :, :-1].sum()
    assert beside["block"] > 0.6 and beside["random"] < 0.4


def test_a_views_mask_depends_on_its_seed_alone() -> None:
    config = MaskConfig(share=1.0)
    together = draw_masks(torch.arange(9), (8, 8), config)
    assert torch.equal(draw_masks(torch.tensor([5]), (8, 8), config)[0], together[5])
    assert not torch.equal(together[5], together[6])


def test_nothing_is_hidden_while_the_weight_is_zero() -> None:
    """A term that ramps in leaves the others' views whole until then."""
    late = Schedule(start=0.0, end=1.0, shape="step", over_epochs=8)
    model = build(
        image=ImageLevelConfig(head=SMALL_HEAD), term=PROTOTYPES.model_copy(update={"weight": late})
    )
    views = make_views(4, seed=4)
    before, after = Progress(50, 100, 10), Progress(90, 100, 10)
    assert model.student_features(views, before)["global"].masked is None
    assert present(model.student_features(views, after)["global"].masked).any()
    loss, scalars = model(StepInput(views, before, False))
    assert torch.equal(loss, scalars["image"]) and scalars["term"].item() == 0.0


def test_two_masking_terms_hide_what_either_hides() -> None:
    model = build(term=PROTOTYPES, other=ALIGNMENT.model_copy(update={"masks": MaskConfig(shape="random")}))
    views = make_views(4, seed=5)
    terms = model.terms()
    first, second = (terms[name].student_masks(views)["global"] for name in ("term", "other"))
    hidden = present(model.student_features(views, PROGRESS)["global"].masked)
    assert torch.equal(hidden, first | second)


def test_the_learnt_vector_is_neither_the_teachers_nor_the_backbones() -> None:
    model = build(term=PROTOTYPES)
    assert "mask_token" in model.student.state_dict()
    assert not any("mask_token" in name for name in model.teacher.state_dict())
    assert not any("mask_token" in name for name in model.student.backbone.state_dict())
    assert build_distillation(small_config()).student.mask_token is None


def test_what_does_not_fit_is_refused() -> None:
    apart = {"global": GROUPS["global"].model_copy(update={"seen_by": "student"})}
    with pytest.raises(ConfigError, match="seen by both"):
        build(apart, term=PROTOTYPES)
    moved = GROUPS["global"].model_copy(update={"photometric": ((Rotate(seen_by="student"),),)})
    with pytest.raises(ConfigError, match="moves the student's pixels"):
        build({"global": moved}, term=PROTOTYPES)
    with pytest.raises(ValueError, match="must rise"):
        MaskConfig(ratio=(0.5, 0.2))
