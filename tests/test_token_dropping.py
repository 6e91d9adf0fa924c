"""Token dropping: which patches stay, what the backbone makes of them, and that every term knows which were kept."""

from __future__ import annotations

import pytest
import torch
from conftest import GROUPS, SMALL_HEAD, make_views, small_config
from narrowing import of_kind, present
from pydantic import ValidationError

from glocal.errors import ConfigError
from glocal.models.backbone import BackboneConfig
from glocal.models.vit import VisionTransformer
from glocal.objectives import (
    ContrastConfig,
    ImageLevelConfig,
    LocalGlobalReferenceConfig,
    MatchedContrastConfig,
    MatchedPatchesConfig,
    SelfPatchConfig,
)
from glocal.objectives.base import Branch
from glocal.objectives.over_prototypes.self_patch import SelfPatch
from glocal.objectives.patch_pairs import gather_patches, match_view_groups
from glocal.schedules import Progress
from glocal.training.network import SelfDistillation, StepInput, build_distillation
from glocal.views.groups import ViewGroup
from glocal.views.keeping import kept_patches

GROUP = ViewGroup(count=2, size=32, area=(0.4, 1.0), keep_patches=0.5)
PROGRESS = Progress(step=50, total_steps=100, steps_per_epoch=10)
BACKBONES: dict[str, dict[str, object]] = {
    "table": {},
    "registers": {"registers": 2},
    "rope": {"position": "rope"},
    "class attention": {"pooling": "class_attention"},
}


def dropping(share: float = 0.5, of: str = "student") -> dict[str, ViewGroup]:
    update = {"keep_patches": share, "keep_patches_of": of}
    return {name: group.model_copy(update=update) for name, group in GROUPS.items()}


# --------------------------------------------------------------------------------------------- which patches stay


def test_kept_patches_are_a_function_of_the_image_alone() -> None:
    seed = torch.randint(2**62, (20,))
    kept = present(kept_patches(seed, 0, GROUP, 16))
    assert kept.shape == (40, 8) and kept.min() == 0 and kept.max() == 15
    assert (kept.diff(dim=1) > 0).all()
    assert torch.equal(present(kept_patches(seed[5:7], 0, GROUP, 16)), kept[10:14])
    assert len(kept.unique(dim=0)) > 35
    assert not torch.equal(kept, present(kept_patches(seed, 1, GROUP, 16)))


def test_every_patch_is_kept_equally_often() -> None:
    counts = present(kept_patches(torch.arange(4000), 0, GROUP, 16)).flatten().bincount(minlength=16)
    assert (counts / 8000 - 0.5).abs().max() < 0.03


def test_a_share_of_a_group_that_nobody_sees_so_is_refused() -> None:
    with pytest.raises(ValidationError, match="keep_patches_of=both"):
        ViewGroup(count=1, size=32, area=(0.4, 1.0), seen_by="teacher", keep_patches=0.5)


# --------------------------------------------------------------------------------------------------- the backbone


@pytest.mark.parametrize("name", BACKBONES)
def test_dropping_equals_masking_by_hand(name: str) -> None:
    """One image at a time, through the blocks, on the tokens that `_embed` gives."""
    torch.manual_seed(0)
    config = BackboneConfig.model_validate(
        {"size": "micro", "patch_size": 8, "image_size": 32, **BACKBONES[name]}
    )
    model = VisionTransformer(config).eval()
    pixels, kept = (
        torch.randn(3, 3, 32, 40),
        torch.stack([torch.randperm(20)[:7].sort().values for _ in range(3)]),
    )
    features = model(pixels, kept)
    assert torch.equal(features.kept, kept) and features.grid == (4, 5)
    for number in range(3):
        x, rotary = model._embed(pixels[number : number + 1], (4, 5))
        tokens = [*range(model.prefix_tokens), *(int(p) + model.prefix_tokens for p in kept[number])]
        turned = None if rotary is None else (rotary[0][tokens], rotary[1][tokens])
        x = x[:, tokens]
        for block in model.blocks:
            x = block(x, turned)
        slow = model._features(x, (4, 5))
        torch.testing.assert_close(features.cls[number], slow.cls[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features.patches[number], slow.patches[0], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- the terms


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("of", ["student", "both"])
def test_matching_equals_matching_everything_and_dropping_pairs(of: str, bilinear: bool) -> None:
    groups, views = dropping(0.5, of), make_views(6)
    model = build_distillation(small_config(views=groups))
    plain = build_distillation(small_config())

    def pairs(
        network: SelfDistillation, groups: dict[str, ViewGroup]
    ) -> dict[tuple[str, int, int, str, int, int], float]:
        """Weight by (group, view of the batch, patch of the grid) of the teacher, then of the student."""
        student = network.student.features(views, groups, "student")
        teacher = network.teacher.features(views, groups, "teacher")
        matched = match_view_groups(views, groups, student, teacher, bilinear=bilinear)
        names = []
        for features, rows in ((teacher, matched.teacher_rows), (student, matched.student_rows)):
            places = []
            for name, row in rows.items():
                f = features[name]
                count, tokens = f.patches.shape[1:3]
                patch = row % tokens
                if f.kept is not None:
                    patch = f.kept[row // tokens // count, row // tokens % count, patch]
                places += [(name, int(r) // tokens, int(p)) for r, p in zip(row, patch, strict=True)]
            names.append(places)
        p = matched.pairs
        return {
            (*names[0][t], *names[1][s]): float(w)
            for s, t, w in zip(p.student.tolist(), p.teacher.tolist(), p.weight, strict=True)
        }

    seen = {
        (name, view): set(row.tolist())
        for number, (name, group) in enumerate(groups.items())
        for view, row in enumerate(
            present(kept_patches(views.seed, number, group, (group.height_width[0] // 8) ** 2))
        )
    }
    expected = {
        (name_t, view_t, patch_t, name_s, view_s, patch_s): weight
        for (name_t, view_t, patch_t, name_s, view_s, patch_s), weight in pairs(plain, GROUPS).items()
        if patch_s in seen[name_s, view_s] and (of == "student" or patch_t in seen[name_t, view_t])
    }
    assert expected and pairs(model, groups) == expected


def test_gathered_rows_are_the_kept_patches() -> None:
    groups, views = dropping(), make_views(3)
    model = build_distillation(small_config(views=groups))
    student = model.student.features(views, groups, "student")
    teacher = model.teacher.features(views, GROUPS, "teacher")
    matched = match_view_groups(views, groups, student, teacher)
    assert gather_patches(student, matched.student_rows).shape[0] == len(matched.pairs.student.unique())
    assert all(f.kept is not None and f.kept.shape == f.patches.shape[:-1] for f in student.values())
    assert all(f.kept is None for f in teacher.values())


TERMS = {
    "image": ImageLevelConfig(head=SMALL_HEAD),
    "contrast": ContrastConfig(),
    "contrast of patches": MatchedContrastConfig(),
    "patch": MatchedPatchesConfig(head=SMALL_HEAD, share=0.7),
    "neighbours": SelfPatchConfig(head=SMALL_HEAD),
    "neighbours-share": SelfPatchConfig(head=SMALL_HEAD, share=0.5),
    "neighbours-torus": SelfPatchConfig(head=SMALL_HEAD, border="torus"),
    "neighbours-attention": SelfPatchConfig(head=SMALL_HEAD, aggregation="own_attention"),
    "reference": LocalGlobalReferenceConfig(head=SMALL_HEAD),
}


@pytest.mark.parametrize("name", TERMS)
def test_terms_work_on_the_kept_patches_in_any_order_of_images(name: str) -> None:
    model = build_distillation(small_config(views=dropping(), objectives={"term": TERMS[name]}))
    views = make_views(5)
    loss, scalars = model(StepInput(views, PROGRESS, True))
    loss.backward()
    assert loss.isfinite() and all(value.isfinite().all() for value in scalars.values())
    assert [n for n, p in model.student.named_parameters() if p.grad is None] == []
    again, _ = model(StepInput(views._rows(torch.tensor([3, 0, 4, 1, 2])), PROGRESS, False))
    torch.testing.assert_close(loss, again, rtol=1e-5, atol=1e-6)


def test_a_student_patch_learns_from_the_neighbours_of_its_own_position() -> None:
    """With one kept patch a view, SelfPatch's positives are those of that patch in the whole grid."""
    term = SelfPatchConfig(head=SMALL_HEAD)
    groups = dropping(1 / 16)
    model = build_distillation(small_config(views=groups, objectives={"term": term}))
    views = make_views(3)
    teacher = model.teacher.features(views, groups, "teacher")
    student = model.student.features(views, groups, "student")
    objective = of_kind(SelfPatch, model.terms()["term"])
    branch = Branch(model.teacher.backbone, model.teacher.heads["term"], teacher)
    whole = objective._choose("global", branch, views).positives.patch
    kept = present(student["global"].kept)
    chosen = objective._choose("global", branch, views, kept).positives.patch
    patch = kept.flatten(0, 1)
    assert torch.equal(chosen[:, 0], whole[torch.arange(6), patch[:, 0]])


@pytest.mark.parametrize("name", ["neighbours", "reference"])
def test_terms_that_need_the_whole_teacher_say_so_at_the_start(name: str) -> None:
    with pytest.raises(ConfigError, match=r"views.global.keep_patches_of=student"):
        build_distillation(small_config(views=dropping(0.5, "both"), objectives={"term": TERMS[name]}))


def test_all_patches_are_bit_for_bit_as_without_the_setting() -> None:
    views = make_views(4)
    losses = [
        build_distillation(small_config(views=groups))(StepInput(views, PROGRESS, False))[0]
        for groups in (GROUPS, dropping(1.0, "both"))
    ]
    assert torch.equal(*losses)
