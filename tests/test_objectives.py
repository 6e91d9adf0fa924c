"""The conformance suite that every objective passes, alone and together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import GROUPS, SMALL_HEAD, make_views, small_config
from narrowing import present

from glocal.conformance.small_runs import PROGRESS as PROGRESS
from glocal.conformance.terms import (
    CHECKS,
    build_alone,
    micro_batches_are_the_same_step,
    order_of_images_is_free,
    take_step,
    two_processes_equal_one,
    with_small_head,
)
from glocal.errors import ConfigError
from glocal.objectives import (
    KINDS,
    CharacteristicConfig,
    CodingRateConfig,
    ContrastConfig,
    ImageLevelConfig,
    InstanceConfig,
    LocalGlobalReferenceConfig,
    LocalGroupConfig,
    MaskedAlignmentConfig,
    MaskedPatchesConfig,
    MatchedContrastConfig,
    MatchedPatchesConfig,
    RelationsConfig,
    SelfPatchConfig,
    SpreadConfig,
)
from glocal.objectives.base import ObjectiveConfig
from glocal.objectives.by_contrast.projection import ProjectionConfig
from glocal.objectives.by_contrast.queue_contrast import ContrastiveHeadConfig
from glocal.objectives.by_contrast.relation_block import ImageToken
from glocal.objectives.masks import MaskConfig
from glocal.objectives.over_prototypes.prototype_term import CentringConfig
from glocal.training.network import SelfDistillation, build_distillation

TERMS = {
    "image": ImageLevelConfig(head=SMALL_HEAD),
    "image-sinkhorn": ImageLevelConfig(head=SMALL_HEAD, centring=CentringConfig(method="sinkhorn")),
    "image-balanced": ImageLevelConfig(head=SMALL_HEAD, pair_weights="balanced"),
    "image-lengths": ImageLevelConfig(head=SMALL_HEAD.model_copy(update={"norm_last_layer": False})),
    "patch": MatchedPatchesConfig(head=SMALL_HEAD),
    "patch-sinkhorn": MatchedPatchesConfig(head=SMALL_HEAD, centring=CentringConfig(method="sinkhorn")),
    "patch-overlap": MatchedPatchesConfig(head=SMALL_HEAD, match_weight="overlap", max_scale_ratio=3.0),
    "patch-paper": MatchedPatchesConfig(head=SMALL_HEAD, rule="paper"),
    "patch-bilinear": MatchedPatchesConfig(head=SMALL_HEAD, bilinear=True),
    "patch-share": MatchedPatchesConfig(head=SMALL_HEAD, share=0.5),
    "reference": LocalGlobalReferenceConfig(head=SMALL_HEAD),
    "reference-lambda": LocalGlobalReferenceConfig(head=SMALL_HEAD, image_share=0.9),
    "neighbours": SelfPatchConfig(head=SMALL_HEAD),
    "neighbours-sinkhorn": SelfPatchConfig(head=SMALL_HEAD, centring=CentringConfig(method="sinkhorn")),
    "neighbours-torus": SelfPatchConfig(
        head=SMALL_HEAD, border="torus", include_self=True, match_on="normed"
    ),
    "neighbours-share": SelfPatchConfig(head=SMALL_HEAD, share=0.4),
    "neighbours-attention": SelfPatchConfig(head=SMALL_HEAD, aggregation="own_attention"),
    "neighbours-all-views": SelfPatchConfig(
        head=SMALL_HEAD, views="all", average="view", window=1, k=1, include_self=True
    ),
}
_QUEUE = {
    "head": ContrastiveHeadConfig(hidden=24, out_dim=8, predictor_hidden=24),
    "queue": 32,
    "storage": "fp32",
}
_GROUP = _QUEUE | {"memory": 24, "neighbours": 3}
TERMS |= {
    "instance": InstanceConfig(**_QUEUE),
    "instance-full": InstanceConfig(**_QUEUE, fill_random=True, skip_same_number=True),
    "instance-flat": InstanceConfig(**_QUEUE, fill_random=True, pair_weights="flat"),
    "group-local": LocalGroupConfig(**_GROUP),
    "group-local-full": LocalGroupConfig(**_GROUP, fill_random=True, student_rows="all"),
    "group-local-reference": LocalGroupConfig(
        **_GROUP,
        fill_random=True,
        double_advance=True,
        exclude_own=False,
        query=ImageToken(norm="before", tokens="all"),
    ),
}
_PROJECTION = ProjectionConfig(hidden=24, out_dim=8)
TERMS |= {
    "contrast": ContrastConfig(head=_PROJECTION),
    "contrast-teacher": ContrastConfig(head=_PROJECTION, targets="teacher"),
    "patch-contrast": MatchedContrastConfig(head=_PROJECTION, images=2),
    "patch-contrast-all": MatchedContrastConfig(head=_PROJECTION, images=None, pairs=4),
    "patch-contrast-teacher": MatchedContrastConfig(head=_PROJECTION, images=2, targets="teacher"),
    "patch-relations": RelationsConfig(),
    "patch-relations-gram": RelationsConfig(form="gram", patches=6),
    "patch-relations-order": RelationsConfig(form="order"),
    "relations-earlier-cka": RelationsConfig(targets="earlier"),
    "relations-earlier": RelationsConfig(form="gram", targets="earlier", refresh_steps=50),
    "relations-earlier-order": RelationsConfig(form="order", targets="earlier"),
    "coding-rate": CodingRateConfig(head=_PROJECTION),
    "coding-rate-student": CodingRateConfig(head=_PROJECTION, targets="student"),
    "spread": SpreadConfig(),
    "spread-koleo": SpreadConfig(form="koleo"),
    "characteristic": CharacteristicConfig(projections=16),
    "characteristic-patches": CharacteristicConfig(projections=16, tokens="patches"),
    "masked": MaskedPatchesConfig(head=SMALL_HEAD),
    "masked-sinkhorn": MaskedPatchesConfig(
        head=SMALL_HEAD,
        masks=MaskConfig(share=0.9, shape="random"),
        centring=CentringConfig(method="sinkhorn"),
    ),
    "masked-alignment": MaskedAlignmentConfig(head=_PROJECTION),
}

# Whatever term the package has is in the suite, whether somebody thought of it here or not.
TERMS |= {
    kind: with_small_head(term()) for kind, term in KINDS.items() if term not in map(type, TERMS.values())
}
# Chunks are of consecutive images: another order makes other chunks.
IN_CHUNKS = ("patch-contrast", "patch-contrast-teacher")
APART = (micro_batches_are_the_same_step, two_processes_equal_one)
"""Checks with a test file of their own, since they take longer."""


def build(name: str, **update: object) -> SelfDistillation:
    return build_alone(TERMS[name], **update)


step = take_step


@pytest.mark.parametrize("check", [c for c in CHECKS if c not in APART], ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", TERMS)
def test_every_term_keeps_every_promise(name: str, check: Callable[[ObjectiveConfig], None]) -> None:
    if check is order_of_images_is_free and name in IN_CHUNKS:
        return
    check(TERMS[name])


@pytest.mark.parametrize("name", [n for n in TERMS if n.startswith(("patch", "reference"))])
def test_batch_without_any_match(name: str) -> None:
    views = make_views(3)
    apart = {n: g.box.clone() for n, g in views.groups.items()}
    for group in apart.values():
        group[..., 2:] = 8.0
        for view in range(group.shape[1]):
            group[:, view, 0] = 16.0 * view
    apart["local"][..., 1] = 32.0
    groups = {n: type(g)(g.pixels, apart[n], g.flip, g.strong) for n, g in views.groups.items()}
    model = build(name)
    loss, _ = step(model, replace(views, groups=groups))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.student.parameters())
    model.finish_step()
    assert all(b.isfinite().all() for b in model.objectives.buffers())


def test_a_term_of_weight_zero_leaves_the_rest_as_it_was() -> None:
    """The image path with a patch term of weight 0 is numerically DINO: loss, gradients and centre, bit for bit."""
    both = small_config()
    off = both.model_copy(
        update={
            "objectives": both.objectives
            | {"patch": both.objectives["patch"].model_copy(update={"weight": 0.0})}
        }
    )
    alone = both.model_copy(update={"objectives": {"image": both.objectives["image"]}})
    models = [build_distillation(config) for config in (off, alone)]
    views = make_views(4)
    losses = [step(model, views)[0] for model in models]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for a, b in zip(models[0].student.parameters(), models[1].student.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(present(a.grad), present(b.grad))


def test_image_term_is_the_same_beside_a_patch_term() -> None:
    views = make_views(4)
    _, alone = step(build_distillation(small_config(objectives={"image": TERMS["image"]})), views)
    _, both = step(build_distillation(small_config()), views)
    assert torch.equal(alone["image"], both["image"])


SHARING = [
    name
    for name, term in TERMS.items()
    if term.shares_heads and hasattr(term, "head") and name != "neighbours-attention"
]


@pytest.mark.parametrize("name", SHARING)
def test_a_term_can_use_an_earlier_ones_head(name: str) -> None:
    terms = {"term": TERMS[name], "second": TERMS[name].model_copy(update={"head_of": "term"})}
    model = build_distillation(small_config(objectives=terms))
    assert model.student.heads["second"] is model.student.heads["term"]
    loss, scalars = step(model, make_views(4))
    assert torch.equal(scalars["second"], scalars["term"])
    loss.backward()
    model.finish_step()
    step(model, make_views(4, seed=1))[0].backward()


def test_a_shared_head_brings_its_settings() -> None:
    """The centre has as many entries as the head that is shared has prototypes, whatever the term's own would have."""
    larger = SMALL_HEAD.model_copy(update={"prototypes": 40})
    terms = {"image": TERMS["image"], "patch": MatchedPatchesConfig(head=larger, head_of="image")}
    model = build_distillation(small_config(objectives=terms))
    for seed in range(2):
        step(model, make_views(2, seed=seed))[0].backward()
        model.finish_step()
    assert model.objectives["patch"].get_buffer("centre.centre").shape == (24,)


@pytest.mark.parametrize("term", ["contrast", "group-local"])
def test_sharing_heads_of_another_kind_is_refused(term: str) -> None:
    groups = {"image": TERMS["image"], "instance": TERMS["instance"]}
    head_of = "image" if term == "contrast" else "instance"
    terms = groups | {"term": TERMS[term].model_copy(update={"head_of": head_of})}
    with pytest.raises(ConfigError, match=r"objectives\.term\.head_of"):
        build_distillation(small_config(objectives=terms))


def test_sharing_a_head_that_comes_later_is_refused() -> None:
    terms = {"patch": TERMS["patch"].model_copy(update={"head_of": "image"}), "image": TERMS["image"]}
    with pytest.raises(ConfigError, match="comes before"):
        build_distillation(small_config(objectives=terms))


def test_image_term_without_a_second_view_is_refused() -> None:
    with pytest.raises(ConfigError, match="another student view"):
        build_distillation(
            small_config(
                views={"global": GROUPS["global"].model_copy(update={"count": 1})},
                objectives={"image": TERMS["image"]},
            )
        )
