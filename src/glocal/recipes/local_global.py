"""Local-Global (v1) and PW-Self (v2): DINO, and the same for patches that show the same place.

Javidani, Sadeghi, Nadjar Araabi, arXiv 2310.18651. v1 adds distillation of geometrically matched patches; v2 adds
photometric augmentation drawn anew for every patch.

    glocal pretrain pw-self data=photos/ out=runs/mine
    glocal pretrain local-global-reference data=cifar10 out=runs/reference preset=cifar10
"""

from __future__ import annotations

from glocal.models.backbone import BackboneConfig
from glocal.objectives.over_prototypes.local_global_reference import LocalGlobalReferenceConfig
from glocal.objectives.over_prototypes.matched_patches import MatchedPatchesConfig
from glocal.objectives.over_prototypes.prototype_term import HeadConfig
from glocal.recipes.dino import dino, image_term
from glocal.recipes.scales import Scale, imagenet, multi_crop
from glocal.training.config import RunConfig, TrainingConfig
from glocal.views.groups import Pipeline, ViewGroup
from glocal.views.photometric import presets as photometric


def local_global(scale: Scale, data: str, out: str) -> RunConfig:
    """DINO and the matched-patch term, with our settings.

    Measured 2026-11-20, one core of an AMD EPYC (Zen 5), 0.05 hours: 500 steps of 64 CIFAR-10 images, k-NN 34.3,
    linear 42.3, correspondence 22.5, mean of 3 seeds. Never run here at published scale.
    """
    objectives = {"image": image_term(scale), "patch": patch_term(scale)}
    return dino(scale, data, out).model_copy(update={"recipe": "local-global", "objectives": objectives})


def pw_self(scale: Scale, data: str, out: str) -> RunConfig:
    """Local-Global with colours drawn for every patch of the student's views, on top of those of the view.

    Measured 2026-11-20, one core of an AMD EPYC (Zen 5), 0.05 hours: 500 steps of 64 CIFAR-10 images, k-NN 34.2,
    linear 42.5, correspondence 20.8, mean of 3 seeds. Never run here at published scale.
    """
    config = local_global(scale, data, out)
    ops = photometric.patch_literal(probability=0.2, seen_by="student")
    views = {name: with_patch_operations(group, ops) for name, group in config.views.items()}
    return config.model_copy(update={"recipe": "pw-self", "views": views})


def patch_term(scale: Scale) -> MatchedPatchesConfig:
    """The matched-patch term with the scale's patch head."""
    return MatchedPatchesConfig(
        head=scale.patch_head, teacher_temperature=scale.teacher_temperature, centring=scale.centring
    )


def with_patch_operations(group: ViewGroup, operations: Pipeline) -> ViewGroup:
    """The group with operations added behind each of its pipelines, before normalisation."""
    return group.model_copy(
        update={"photometric": tuple((*pipeline, *operations) for pipeline in group.photometric)}
    )


# ------------------------------------------------------------------------------------------------- reference modes

# (backbone size, patch, prototypes, batch over all GPUs): the defaults recorded in the reference's branches.
REFERENCE_PRESETS = {
    "cifar10": ("tiny", 16, 1000, 120),
    "imagenet100": ("base", 8, 10000, 24),
    "imagenet1k": ("tiny", 16, 65536, 24),
}


def local_global_reference(preset: str, data: str, out: str) -> RunConfig:
    """The published code's choices: one head over all tokens, per-position centres, plain mean, rule `paper`, crops,
    flips and colours shared by a whole batch. Departures: sources are not squashed to squares first, so on data of
    mixed sizes shared crops are equal in proportion only where sizes are; float32 or bfloat16, no float16.

    Never run here at published scale.
    """
    size, patch, prototypes, batch = REFERENCE_PRESETS[preset]
    base = dino(imagenet(), data, out)
    head = HeadConfig(prototypes=prototypes)
    update = {
        "recipe": "local-global-reference",
        "crops": "batch",
        "views": multi_crop(224, 96, 8, global_area=(0.4, 1.0), local_area=(0.05, 0.4), jitter="exact"),
        "backbone": BackboneConfig(
            size=size,
            patch_size=patch,
            image_size=224,
            drop_path=0.1,
            init="trunc_normal",
            position_antialias=False,
            position_offset=0.1,
        ),
        "objectives": {"all": LocalGlobalReferenceConfig(head=head)},
        "training": TrainingConfig(batch_size=batch, epochs=100),
    }
    return base.model_copy(update=update)


def pw_self_reference(preset: str, data: str, out: str) -> RunConfig:
    """The reference with the only patch augmentation found in its author's code: four operations in random order on
    every cell of all views, the teacher's too. That branch draws crops for every image.

    Never run here at published scale.
    """
    config = local_global_reference(preset, data, out)
    ops = photometric.patch_code(form="exact")
    views = {name: with_patch_operations(group, ops) for name, group in config.views.items()}
    return config.model_copy(update={"recipe": "pw-self-reference", "crops": "image", "views": views})
