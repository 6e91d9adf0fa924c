"""The conformance suite that every objective passes, alone and together."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import GROUPS, SMALL_HEAD, make_views, small_config
from narrowing import present

from glocal.errors import ConfigError
from glocal.models.backbone import BackboneConfig
from glocal.models.export import export_backbone
from glocal.models.vit import VisionTransformer
from glocal.objectives import (
    KINDS,
    CharacteristicConfig,
    CodingRateConfig,
    ContrastConfig,
    DistilConfig,
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
from glocal.objectives.over_prototypes.centring import CentringConfig
from glocal.schedules import Progress
from glocal.training.config import TeacherConfig
from glocal.training.network import SelfDistillation, StepInput, build_distillation
from glocal.views.batch import Views

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
SMALL_HEADS = {type(head): head for head in (SMALL_HEAD, _PROJECTION, _QUEUE["head"])}


def small(kind: str) -> ObjectiveConfig:
    """A term as its defaults make it, with a small head."""
    term = KINDS[kind]()
    head = getattr(term, "head", None)
    return term.model_copy(update={"head": SMALL_HEADS[type(head)]} if type(head) in SMALL_HEADS else {})


# Whatever term the package has is in the suite, whether somebody thought of it here or not.
TERMS |= {kind: small(kind) for kind, term in KINDS.items() if term not in map(type, TERMS.values())}
PROGRESS = Progress(step=50, total_steps=100, steps_per_epoch=10)


@functools.cache
def frozen_model() -> str:
    """A frozen teacher of another width, for the terms that need one."""
    torch.manual_seed(0)
    config = BackboneConfig(size="micro", embed_dim=48, depth=1, num_heads=4, patch_size=16, image_size=32)
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return str(export_backbone(VisionTransformer(config), Path(tempfile.mkdtemp()), mean=mean, std=std))


def build(name: str, **update: object) -> SelfDistillation:
    if isinstance(TERMS[name], DistilConfig):
        update["teacher"] = TeacherConfig(frozen=frozen_model())
    model = build_distillation(small_config(objectives={"term": TERMS[name]}, **update))
    # A teacher that differs from the student, and a centre that is not zero.
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.add_(
                0.05
                * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return model


def step(
    model: SelfDistillation, views: Views, watch: bool = False
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss, scalars = model(StepInput(views, PROGRESS, watch))
    return loss, scalars


@pytest.mark.parametrize("name", TERMS)
def test_loss_is_finite_and_reaches_every_trainable_parameter(name: str) -> None:
    model = build(name)
    loss, _ = step(model, make_views(4))
    assert loss.shape == () and loss.isfinite()
    loss.backward()
    # A patch term alone has no use for what only the class token passes through after the last block.
    unused = [n for n, p in model.student.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert unused == []
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())


@pytest.mark.parametrize("name", TERMS)
def test_watching_does_not_change_the_loss(name: str) -> None:
    views = make_views(4)
    quiet, _ = step(build(name), views)
    watched, scalars = step(build(name), views, watch=True)
    assert torch.equal(quiet, watched)
    assert all(s.isfinite().all() for s in scalars.values())


@pytest.mark.parametrize("name", TERMS)
def test_state_round_trips_and_the_next_step_is_equal(name: str) -> None:
    model, other = build(name), build(name)
    step(model, make_views(4, seed=1))
    model.finish_step()
    other.objectives.load_state_dict(copy.deepcopy(model.objectives.state_dict()))
    views = make_views(4, seed=2)
    assert torch.equal(step(model, views)[0], step(other, views)[0])


# Chunks are of consecutive images: another order makes other chunks.
IN_CHUNKS = ("patch-contrast", "patch-contrast-teacher")


@pytest.mark.parametrize("name", [n for n in TERMS if n not in IN_CHUNKS])
def test_order_of_images_does_not_matter(name: str) -> None:
    views = make_views(5, seed=4)
    order = torch.tensor([3, 0, 4, 1, 2])
    loss, _ = step(build(name), views)
    permuted, _ = step(build(name), views._rows(order))
    torch.testing.assert_close(loss, permuted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_bfloat16_is_close(name: str) -> None:
    views = make_views(4, seed=5)
    exact, _ = step(build(name), views)
    model = build(name)
    model.autocast = torch.bfloat16
    rough, _ = step(model, views)
    model.finish_step()
    assert all(not b.is_floating_point() or b.isfinite().all() for b in model.objectives.buffers())
    torch.testing.assert_close(exact, rough, rtol=3e-2, atol=3e-2)


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
    loss, _ = step(model, views.with_groups(groups))
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


@pytest.mark.parametrize("name", TERMS)
def test_every_term_pulls_at_the_backbone_and_the_record_says_how_hard(name: str) -> None:
    model = build(name)
    step(model, make_views(4, seed=6))
    model.finish_step()
    _, scalars = step(model, make_views(4, seed=7), watch=True)
    assert scalars["term.feature_gradient"] > 0


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
