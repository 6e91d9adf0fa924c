"""The contrast of matched patches against a slow NumPy version; what is drawn, and from what it is told apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import GROUPS, make_views, small_config
from slow_matches import GRIDS, all_matches

from glocal.errors import ConfigError
from glocal.objectives import MatchedContrastConfig
from glocal.objectives.base import Role
from glocal.objectives.by_contrast.projection import ProjectionConfig
from glocal.objectives.pair_draw import draw_pairs
from glocal.objectives.patch_pairs import keep_pairs, match_view_groups
from glocal.schedules import Progress
from glocal.training.network import Network, SelfDistillation, StepInput, build_distillation
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup
from glocal.views.photometric.warping import Rotate

PROGRESS = Progress(step=50, total_steps=100, steps_per_epoch=10)
HEAD = ProjectionConfig(hidden=24, layers=2, out_dim=8)


def build(groups: dict[str, ViewGroup] = GROUPS, **settings: object) -> SelfDistillation:
    term = MatchedContrastConfig.model_validate({"head": HEAD, **settings})
    model = build_distillation(small_config(views=groups, objectives={"pixel": term}))
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            noise = torch.Generator().manual_seed(parameter.numel())
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    return model


def projected(network: Network, views: Views, role: Role) -> dict[str, np.ndarray]:
    return {
        name: network.heads["pixel"](f.patches).detach().double().numpy()
        for name, f in network.features(views, GROUPS, role).items()
    }


def slow_info_nce(
    firsts: list[tuple[int, tuple[str, int, int]]],
    seconds: list[tuple[int, tuple[str, int, int]]],
    vectors_1: dict[str, np.ndarray],
    vectors_2: dict[str, np.ndarray],
    images: int,
    temperature: float = 0.1,
) -> float:
    """Every pair by itself: its second patch against the other second patches of the chunk."""
    terms = []
    for (image, one), (_, two) in zip(firsts, seconds, strict=True):
        anchor = vectors_1[one[0]][image, one[1], one[2]]
        seen, others = {(image, two)}, []
        for other_image, other in seconds:
            if other_image // images == image // images and (other_image, other) not in seen:
                others.append(vectors_2[other[0]][other_image, other[1], other[2]])
        positive = anchor @ vectors_2[two[0]][image, two[1], two[2]] / temperature
        negatives = [anchor @ v / temperature for v in others]
        terms.append(np.log(np.exp([positive, *negatives]).sum()) - positive)
    return float(np.mean(terms))


@pytest.mark.parametrize("images", [2, None])
@pytest.mark.parametrize("targets", ["student", "teacher"])
def test_loss_over_every_match_equals_a_loop(images: int | None, targets: str) -> None:
    """With as many pairs as there are matches nothing is left to the draw."""
    model = build(pairs=500, images=images, targets=targets)
    views = make_views(3, seed=4)
    loss, _ = model(StepInput(views, PROGRESS, False))
    second_groups = GROUPS if targets == "student" else ["global"]
    matches = [(i, m) for i in range(3) for m in all_matches(views, i, second_groups)]
    firsts, seconds = [(i, m[0]) for i, m in matches], [(i, m[1]) for i, m in matches]
    ours = projected(model.student, views, "student")
    theirs = ours if targets == "student" else projected(model.teacher, views, "teacher")
    expected = slow_info_nce(firsts, seconds, ours, theirs, images or 3)
    if targets == "student":
        expected = (expected + slow_info_nce(seconds, firsts, theirs, ours, images or 3)) / 2
    assert len(matches) > 30
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_no_more_pairs_than_asked_and_all_of_them_matches() -> None:
    views = make_views(5, seed=5)
    model = build()
    features = model.student.features(views, GROUPS, "student")
    tokens = match_view_groups(views, GROUPS, features, features)
    drawn, slot = draw_pairs(tokens.image, views.seed, 8)
    kept = keep_pairs(tokens, drawn)
    per_image = torch.bincount(tokens.image, minlength=5).clamp(max=8)
    assert torch.equal(torch.bincount(kept.image, minlength=5), per_image)
    assert slot.unique().numel() == slot.numel() and torch.equal(slot // 8, kept.image)
    rows = {
        name: np.concatenate([r.numpy() for r in getattr(kept, name).values()]) for name in ("student_rows",)
    }
    group = np.concatenate([[n] * r.numel() for n, r in kept.student_rows.items()])
    second_rows = np.concatenate([r.numpy() for r in kept.teacher_rows.values()])
    second_group = np.concatenate([[n] * r.numel() for n, r in kept.teacher_rows.items()])

    def place(name: np.str_, row: np.int64) -> tuple[str, int, int]:
        patches, count = np.prod(GRIDS[name]), GROUPS[name].count
        return (str(name), int(row // patches % count), int(row % patches))

    for i, a, b in zip(kept.image.tolist(), *(x.numpy() for x in kept.pairs[:2]), strict=True):
        pair = place(group[a], rows["student_rows"][a]), place(second_group[b], second_rows[b])
        assert pair in list(all_matches(views, i, GROUPS))


def test_an_images_draw_depends_on_nothing_but_the_image() -> None:
    image, seed = torch.arange(4).repeat_interleave(20), torch.tensor([5, 6, 7, 8])
    shuffled = image[torch.randperm(80, generator=torch.Generator().manual_seed(0))]
    alone, _ = draw_pairs(torch.zeros(20, dtype=torch.int64), seed[2:3], 6)
    together, _ = draw_pairs(image, seed, 6)
    mixed, _ = draw_pairs(shuffled, seed, 6)
    assert torch.equal(together[12:18] - 40, alone)
    assert torch.equal((shuffled == 2).nonzero()[:, 0][alone], mixed[12:18])
    assert not torch.equal(together[:6], together[6:12] - 20)


def test_every_match_is_drawn_about_equally_often() -> None:
    seed = torch.arange(4000)
    drawn, _ = draw_pairs(seed.repeat_interleave(10), seed, 3)
    counts = torch.bincount(drawn % 10)
    assert (counts - 1200).abs().max() < 120


def test_without_any_match_the_loss_is_zero_and_differentiable() -> None:
    views = make_views(2, {"global": GROUPS["global"]}, seed=6)
    apart = views.groups["global"]
    box = torch.tensor([[0.0, 0, 16, 16], [32, 32, 16, 16]]).expand(2, 2, 4)
    groups = {"global": type(apart)(apart.pixels, box, apart.flip, apart.strong)}
    model = build({"global": GROUPS["global"]})
    loss, scalars = model(StepInput(replace(views, groups=groups), PROGRESS, True))
    loss.backward()
    assert loss.item() == 0.0 and scalars["pixel.pairs_an_image"].item() == 0.0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.student.parameters())


def test_operations_that_move_pixels_are_refused() -> None:
    moved = GROUPS["global"].model_copy(update={"photometric": ((Rotate(),),)})
    with pytest.raises(ConfigError, match="moves pixels"):
        build({"global": moved})
