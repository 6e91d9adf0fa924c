"""SelfPatch's term against a slow NumPy version of matching, class attention, heads and loss, patch by patch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import GROUPS, SMALL_HEAD, make_views
from narrowing import of_kind, present
from slow_self_patch import (
    BACKBONE,
    CENTRE,
    POOLED,
    array,
    build,
    run,
    slow_aggregate,
    slow_logits,
    slow_loss,
    softmax,
)

from glocal.errors import ConfigError
from glocal.matching.similar_patches import SimilarPatches
from glocal.models.aggregator import Aggregator
from glocal.models.backbone import BackboneConfig
from glocal.models.heads import PrototypeHead
from glocal.objectives import ImageLevelConfig, SelfPatchConfig
from glocal.objectives.base import Branch
from glocal.objectives.over_prototypes.self_patch import SelfPatch
from glocal.objectives.over_prototypes.self_patch_positives import weighted_mean, wrapped
from glocal.views.groups import ViewGroup
from glocal.views.photometric.warping import Rotate


@pytest.mark.parametrize("grid", [(14, 14), (6, 6), (8, 8), (7, 11)])
@pytest.mark.parametrize(
    ("backbone", "update"),
    [
        (POOLED, {"aggregation": "class_attention", "border": "torus"}),
        (POOLED, {"aggregation": "class_attention", "include_self": True, "match_on": "normed"}),
        (BACKBONE, {}),
    ],
)
def test_loss_equals_a_loop_over_patches(
    grid: tuple[int, int], backbone: BackboneConfig, update: dict[str, object]
) -> None:
    groups = {"global": ViewGroup(count=1, size=(4 * grid[0], 4 * grid[1]), area=(0.4, 1.0))}
    model = build(SelfPatchConfig.model_validate({"head": SMALL_HEAD, **update}), groups, backbone)
    views = make_views(2, groups, seed=3)
    loss, _ = run(model, views)
    aggregator = model.teacher.backbone.aggregator
    assert loss.item() == pytest.approx(0.1 * slow_loss(model, views, groups, aggregator), rel=1e-5)


@pytest.mark.parametrize("average", ["view", "token"])
def test_reference_options_equal_a_loop_over_all_views(average: str) -> None:
    groups = GROUPS | {"local": GROUPS["local"].model_copy(update={"count": 2})}
    term = SelfPatchConfig(
        head=SMALL_HEAD,
        aggregation="class_attention",
        border="torus",
        views="all",
        average=average,
        weight=1.0,
    )
    model = build(term, groups, POOLED)
    views = make_views(2, groups, seed=4)
    loss, _ = run(model, views)
    assert loss.item() == pytest.approx(
        slow_loss(model, views, groups, model.teacher.backbone.aggregator), rel=1e-5
    )


def test_own_attention_is_the_patch_loss_and_a_loop_over_summaries() -> None:
    term = SelfPatchConfig(head=SMALL_HEAD, aggregation="own_attention", weight=1.0)
    model = build(term)
    summary_centre = torch.linspace(0.3, -0.1, 24)
    model.objectives["term"].get_buffer("summary_centre.centre").copy_(summary_centre)
    views = make_views(2, seed=5)
    loss, scalars = run(model, views, watch=True)
    networks = {"student": model.student, "teacher": model.teacher}
    heads = {role: of_kind(PrototypeHead, network.heads["term"]) for role, network in networks.items()}
    own = {role: of_kind(Aggregator, head.aggregator) for role, head in heads.items()}
    patch = slow_loss(model, views, GROUPS, own["teacher"])
    found = []
    for image in views.groups["global"].pixels:
        logits = {}
        for role, network in (("student", model.student), ("teacher", model.teacher)):
            with torch.no_grad():
                raw = array(network.backbone(image).tokens_before_norm)[:, 1:]
            logits[role] = [slow_logits(heads[role], slow_aggregate(own[role], tokens)) for tokens in raw]
        for s, t in ((0, 1), (1, 0)):
            p = softmax((logits["teacher"][t] - summary_centre.double().numpy()) / 0.04)
            found.append(-(p * np.log(softmax(logits["student"][s] / 0.1))).sum())
    assert scalars["term.summary"].item() == pytest.approx(np.mean(found), rel=1e-5)
    assert loss.item() == pytest.approx(patch + np.mean(found), rel=1e-5)


# ------------------------------------------------------------------------------------------------ parts and options


def test_weighted_mean_leaves_out_what_is_not_valid() -> None:
    tokens = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = SimilarPatches(
        torch.tensor([[[3, 1, 0]], [[8, 2, 0]]]),
        torch.tensor([[[True, True, False]]] * 2),
        torch.tensor([[[0.8, 0.2, 0.9]], [[0.5, -0.4, 0.0]]]),
    )
    mean = weighted_mean(tokens, found)
    torch.testing.assert_close(mean[0, 0], 0.8 * tokens[0, 3] + 0.2 * tokens[0, 1])
    torch.testing.assert_close(mean[1, 0], tokens[1, 8], rtol=1e-4, atol=1e-5)
    assert not mean.requires_grad


@pytest.mark.parametrize("grid", [(6, 6), (14, 14), (5, 3)])
def test_wrapped_is_every_candidate_across_the_border(grid: tuple[int, int]) -> None:
    own = np.arange(grid[0] * grid[1])
    expected, patches = [], []
    for patch in own:
        row, column = divmod(int(patch), grid[1])
        cells = [(row + d, column + r) for d in (-1, 0, 1) for r in (-1, 0, 1)]
        patches.append([r % grid[0] * grid[1] + c % grid[1] for r, c in cells])
        expected.append([not (0 <= r < grid[0] and 0 <= c < grid[1]) for r, c in cells])
    found = wrapped(torch.from_numpy(own)[None], torch.tensor(patches)[None], grid, window=3)
    assert found[0].tolist() == expected


def test_monitors_count_the_border() -> None:
    """With all 8 candidates as positives the shares are known: 100 of 288 at 6x6 lie beyond the border."""
    groups = {"global": ViewGroup(count=2, size=24, area=(0.4, 1.0))}
    for border in ("clip", "torus"):
        model = build(SelfPatchConfig(head=SMALL_HEAD, k=8, border=border), groups)
        _, scalars = run(model, make_views(2, groups), watch=True)
        corners, edges = 4 * 5, 16 * 3
        assert scalars["term.border_share"].item() == pytest.approx((corners + edges) / (36 * 8))
        assert -1 <= scalars["term.neighbour_cosine"] <= 1
        assert 0 <= scalars["term.target_entropy"] <= 1


def test_a_share_takes_as_many_patches_of_every_view_and_other_ones_for_other_images() -> None:
    model = build(SelfPatchConfig(head=SMALL_HEAD, share=0.25, border="torus"))
    term, views = of_kind(SelfPatch, model.objectives["term"]), make_views(3)
    with torch.no_grad():
        teacher = Branch(
            model.teacher.backbone,
            model.teacher.heads["term"],
            model.teacher.features(views, GROUPS, "teacher"),
        )
        chosen = term._choose("global", teacher, views)
    rows = [sorted(row.tolist()) for row in present(chosen.row)]
    assert all(len(set(row)) == 16 for row in rows) and len({tuple(row) for row in rows}) == len(rows)
    assert run(model, views, watch=True)[0].isfinite()


def test_gradients_reach_backbone_norm_and_head_only() -> None:
    model = build(SelfPatchConfig(head=SMALL_HEAD, aggregation="class_attention"), backbone=POOLED)
    run(model, make_views(2))[0].backward()
    without = {name for name, p in model.student.named_parameters() if p.grad is None or not p.grad.any()}
    # The reference's aggregator learns from the image term alone; its norm is the patches' norm too.
    assert without == {
        n for n, _ in model.student.named_parameters() if "aggregator" in n and "aggregator.norm" not in n
    }
    assert all(p.grad is None for p in model.teacher.parameters())

    model = build(
        SelfPatchConfig(head=SMALL_HEAD, aggregation="class_attention"),
        backbone=POOLED,
        image=ImageLevelConfig(head=SMALL_HEAD),
    )
    run(model, make_views(2))[0].backward()
    assert all(p.grad is not None for p in model.student.parameters())


def test_own_attention_leaves_the_backbones_gradients_to_the_patch_loss() -> None:
    model = build(SelfPatchConfig(head=SMALL_HEAD, aggregation="own_attention"))
    with torch.no_grad():
        model.objectives["term"].get_buffer("summary_centre.centre").copy_(CENTRE.flip(0))
    gradients = []
    for moved in (False, True):
        if moved:  # The summaries' targets change, the patches' targets do not.
            model.objectives["term"].get_buffer("summary_centre.centre").mul_(-2)
        model.zero_grad()
        run(model, make_views(2))[0].backward()
        gradients.append({n: present(p.grad).clone() for n, p in model.student.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]) == name.startswith("backbone."), name


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("update", "groups", "message"),
    [
        ({"k": 9}, GROUPS, r"views.global, 32x32 pixels: k is 9, but a 3x3 window has 8 candidates"),
        ({"window": 9}, GROUPS, r"views.global.*window 9 is larger than the grid 8x8"),
        (
            {"window": 5, "views": "all"},
            GROUPS,
            r"views.local, 16x16 pixels: window 5 is larger than the grid 4x4",
        ),
        ({"window": 4}, GROUPS, "must be odd"),
        ({"aggregation": "class_attention"}, GROUPS, "backbone.pooling=class_attention"),
        ({"aggregation": "own_attention", "head_of": "image"}, GROUPS, "must be its own"),
        (
            {},
            {"global": GROUPS["global"].model_copy(update={"seen_by": "student"})},
            "none is seen by both.*views=all",
        ),
        (
            {},
            {"global": GROUPS["global"].model_copy(update={"photometric": ((Rotate(seen_by="student"),),)})},
            "'rotate', which moves",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(
    update: dict[str, object], groups: dict[str, ViewGroup], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(SelfPatchConfig.model_validate({"head": SMALL_HEAD, **update}), groups)


def test_a_rotation_that_both_networks_see_is_allowed() -> None:
    groups = {"global": GROUPS["global"].model_copy(update={"photometric": ((Rotate(),),)})}
    assert run(build(SelfPatchConfig(head=SMALL_HEAD), groups), make_views(2, groups))[0].isfinite()


def test_a_backbone_without_patch_tokens_is_refused(unchecked: None) -> None:
    term = SelfPatchConfig(head=SMALL_HEAD).build(32, GROUPS)
    backbone: Any = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="Linear gives no patch tokens"):
        term.check_backbone(backbone)
