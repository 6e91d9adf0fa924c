"""The matched-patch terms against slow NumPy versions that loop over images, view pairs and patches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import GROUPS, SMALL_HEAD, make_views, small_config

from glocal.errors import ConfigError
from glocal.matching.geometric import Matches, Rule, Weight, match_patches
from glocal.objectives import LocalGlobalReferenceConfig, MatchedPatchesConfig
from glocal.schedules import Progress
from glocal.training.network import Network, SelfDistillation, StepInput, build_distillation
from glocal.views.batch import Views
from glocal.views.photometric.warping import Rotate

PROGRESS = Progress(step=50, total_steps=100, steps_per_epoch=10)


def logits(network: Network, name: str, tokens: torch.Tensor) -> np.ndarray:
    return np.asarray(network.heads[name](tokens).detach().double().numpy())


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def cross_entropy(teacher_logits: np.ndarray, student_logits: np.ndarray, centre: np.ndarray) -> float:
    p, q = softmax((teacher_logits - centre) / 0.04), softmax(student_logits / 0.1)
    return float(-(p * np.log(q)).sum())


def every_pair(
    model: SelfDistillation, views: Views, rule: Rule, weight: Weight = "none"
) -> Iterator[tuple[int, int, str, int, Matches]]:
    """(image, teacher view, student view, matches) of all pairs of different views, one at a time."""
    grids = {"global": (4, 4), "local": (2, 2)}
    for image in range(len(views)):
        for t in range(2):
            for name, group in views.groups.items():
                for s in range(group.box.shape[1]):
                    if (name, s) != ("global", t):
                        a = views.groups["global"]
                        one = slice(image, image + 1)
                        found = match_patches(
                            a.box[one, t],
                            a.flip[one, t],
                            (4, 4),
                            group.box[one, s],
                            group.flip[one, s],
                            grids[name],
                            rule=rule,
                            weight=weight,
                        )
                        yield image, t, name, s, found


@pytest.mark.parametrize(("rule", "weight"), [("center", "none"), ("center", "overlap"), ("paper", "none")])
def test_loss_equals_a_loop_over_everything(rule: Rule, weight: Weight) -> None:
    config = MatchedPatchesConfig(head=SMALL_HEAD, rule=rule, match_weight=weight)
    model = build_distillation(small_config(objectives={"patch": config}))
    centre = torch.linspace(-0.2, 0.2, 24)
    model.objectives["patch"].get_buffer("centre.centre").copy_(centre)
    views = make_views(3, seed=7)
    loss, _ = model(StepInput(views, PROGRESS, False))
    student = model.student.features(views, GROUPS, "student")
    teacher = model.teacher.features(views, GROUPS, "teacher")
    total, weights = 0.0, 0.0
    for image, t, name, s, found in every_pair(model, views, rule, weight):
        for patch_t, patch_s, w in zip(
            found.patch_a.tolist(), found.patch_b.tolist(), found.weight.tolist(), strict=True
        ):
            z_t = logits(model.teacher, "patch", teacher["global"].patches[image, t, patch_t])
            z_s = logits(model.student, "patch", student[name].patches[image, s, patch_s])
            total += w * cross_entropy(z_t, z_s, centre.numpy())
            weights += w
    assert weights > 10
    assert loss.item() == pytest.approx(total / weights, rel=1e-4)


def test_reference_loss_does_not_depend_on_how_teacher_views_are_grouped() -> None:
    """Two groups of one view each, of one size, give what one group of both gives."""
    views = make_views(3, {"global": GROUPS["global"]}, seed=13)
    both = views.groups["global"]
    one = GROUPS["global"].model_copy(update={"count": 1})
    apart = {
        name: type(both)(*(x[:, i : i + 1] for x in (both.pixels, both.box, both.flip, both.strong)))
        for i, name in enumerate(("a", "b"))
    }
    losses = []
    for groups, batch in (
        ({"global": GROUPS["global"]}, views),
        ({"a": one, "b": one}, replace(views, groups=apart)),
    ):
        config = small_config(views=groups, objectives={"all": LocalGlobalReferenceConfig(head=SMALL_HEAD)})
        model = build_distillation(config)
        with torch.no_grad():
            for parameter in model.teacher.parameters():
                noise = torch.Generator().manual_seed(parameter.numel())
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
        losses.append(model(StepInput(batch, PROGRESS, False))[0])
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("share", [None, 0.9])
def test_reference_loss_equals_a_loop_over_everything(share: float | None) -> None:
    config = LocalGlobalReferenceConfig(head=SMALL_HEAD, image_share=share)
    model = build_distillation(small_config(objectives={"all": config}))
    term = model.objectives["all"]
    table = 0.3 * torch.randn(17, 24, generator=torch.Generator().manual_seed(0))
    term.centre = table.clone()
    views = make_views(2, seed=8)
    loss, _ = model(StepInput(views, PROGRESS, False))
    student = model.student.features(views, GROUPS, "student")
    teacher = model.teacher.features(views, GROUPS, "teacher")
    means: list[float] = []
    for image, t, name, s, found in every_pair(model, views, "paper"):
        z_t = logits(model.teacher, "all", teacher["global"].cls[image, t])
        image_term = cross_entropy(
            z_t, logits(model.student, "all", student[name].cls[image, s]), table[0].numpy()
        )
        patch_terms = []
        for patch_t, patch_s in zip(found.patch_a.tolist(), found.patch_b.tolist(), strict=True):
            z_t = logits(model.teacher, "all", teacher["global"].patches[image, t, patch_t])
            z_s = logits(model.student, "all", student[name].patches[image, s, patch_s])
            patch_terms.append(cross_entropy(z_t, z_s, table[1 + patch_t].numpy()))
        if share is None:
            means.append(float(np.mean([image_term, *patch_terms])))
        else:
            means.append(
                share * image_term + (1 - share) * (float(np.mean(patch_terms)) if patch_terms else 0.0)
            )
    assert loss.item() == pytest.approx(np.mean(means), rel=1e-4)


def test_reference_centres_follow_the_mean_logit_of_each_position() -> None:
    model = build_distillation(small_config(objectives={"all": LocalGlobalReferenceConfig(head=SMALL_HEAD)}))
    views = make_views(3, seed=9)
    model(StepInput(views, PROGRESS, False))
    model.finish_step()
    teacher = model.teacher.features(views, GROUPS, "teacher")["global"]
    expected = [logits(model.teacher, "all", teacher.cls.flatten(0, 1)).mean(0)]
    expected += [
        logits(model.teacher, "all", teacher.patches[:, :, i].flatten(0, 1)).mean(0) for i in range(16)
    ]
    np.testing.assert_allclose(
        model.objectives["all"].get_buffer("centre").numpy(), 0.1 * np.array(expected), rtol=1e-4, atol=1e-6
    )


def test_bilinear_targets_equal_the_mixture_of_four_teachers() -> None:
    """Against nearest targets: same patches matched, and a mixture's cross-entropy is linear in its parts."""
    near = build_distillation(small_config(objectives={"patch": MatchedPatchesConfig(head=SMALL_HEAD)}))
    soft = build_distillation(
        small_config(objectives={"patch": MatchedPatchesConfig(head=SMALL_HEAD, bilinear=True)})
    )
    views = make_views(3, seed=10)
    _, a = near(StepInput(views, PROGRESS, True))
    _, b = soft(StepInput(views, PROGRESS, True))
    assert torch.equal(a["patch.matched_share"], b["patch.matched_share"])
    assert not torch.equal(a["patch"], b["patch"])
    # Identical boxes and no flips: the centre of a patch is the centre of its match, so both readings are one.
    same = {
        n: type(g)(
            g.pixels,
            torch.tensor([0.0, 0, 64, 64]).expand(g.box.shape).contiguous(),
            torch.zeros_like(g.flip),
            g.strong,
        )
        for n, g in views.groups.items()
        if n == "global"
    }
    only = {"global": GROUPS["global"]}
    pair = [
        build_distillation(
            small_config(views=only, objectives={"patch": MatchedPatchesConfig(head=SMALL_HEAD, bilinear=b)})
        )
        for b in (False, True)
    ]
    losses = [m(StepInput(replace(views, groups=same), PROGRESS, False))[0] for m in pair]
    torch.testing.assert_close(*losses)


def test_share_keeps_about_that_share() -> None:
    views = make_views(16, seed=11)
    full = build_distillation(small_config(objectives={"patch": MatchedPatchesConfig(head=SMALL_HEAD)}))
    half = build_distillation(
        small_config(objectives={"patch": MatchedPatchesConfig(head=SMALL_HEAD, share=0.5)})
    )
    shares = [m(StepInput(views, PROGRESS, True))[1]["patch.matched_share"].item() for m in (full, half)]
    assert 0.4 < shares[1] / shares[0] < 0.6


def test_operations_that_move_pixels_are_refused() -> None:
    moved = GROUPS["global"].model_copy(update={"photometric": ((Rotate(),),)})
    with pytest.raises(ConfigError, match="moves pixels"):
        build_distillation(small_config(views={"global": moved}))
