"""SelfPatch: DINO, and the same for patches whose teacher is their own neighbourhood.

Yun, Lee, Kim, Shin 2022, "Patch-level Representation Learning for Self-supervised Vision Transformers", CVPR, arXiv
2206.07990. Published with ViT-S/16 on ImageNet-1k, 8 GPUs: fine-tuned COCO box 42.1 and mask 38.5 AP (DINO 40.8 and
37.3), ADE20K 41.2 mIoU with Semantic FPN (DINO 38.3); frozen features were not found better than DINO's (the authors'
and others' figures; not yet reproduced here).

    glocal pretrain selfpatch data=photos/ out=runs/mine
    glocal pretrain pw-self-selfpatch data=photos/ out=runs/both
    glocal pretrain selfpatch-reference data=imagenet/train out=runs/reference preset=s200
"""

from __future__ import annotations

from glocal.models.backbone import BackboneConfig
from glocal.objectives.over_prototypes.image_level import ImageLevelConfig
from glocal.objectives.over_prototypes.prototype_term import HeadConfig
from glocal.objectives.over_prototypes.self_patch import SelfPatchConfig
from glocal.recipes.dino import dino, image_term
from glocal.recipes.local_global import pw_self
from glocal.recipes.scales import Scale, multi_crop
from glocal.training.config import OptimiserConfig, RunConfig, TeacherConfig, TrainingConfig


def selfpatch(scale: Scale, data: str, out: str) -> RunConfig:
    """DINO and SelfPatch's term with our settings: true neighbours only, on the views that the teacher sees anyway.

    Measured 2026-11-20, one core of an AMD EPYC (Zen 5), 0.04 hours: 500 steps of 64 CIFAR-10 images, k-NN 33.5,
    linear 40.8, correspondence 18.8, mean of 2 seeds. Never run here at published scale.
    """
    objectives = {"image": image_term(scale), "neighbours": neighbour_term(scale)}
    return dino(scale, data, out).model_copy(update={"recipe": "selfpatch", "objectives": objectives})


def pw_self_selfpatch(scale: Scale, data: str, out: str) -> RunConfig:
    """PW-Self with SelfPatch's term beside its matched patches. Either goes by setting its weight to 0.

    Measured 2026-11-20, one core of an AMD EPYC (Zen 5), 0.06 hours: 500 steps of 64 CIFAR-10 images, k-NN 33.5,
    linear 41.1, correspondence 22.1, mean of 2 seeds. Never run here at published scale.
    """
    config = pw_self(scale, data, out)
    objectives = config.objectives | {"neighbours": neighbour_term(scale)}
    return config.model_copy(update={"recipe": "pw-self-selfpatch", "objectives": objectives})


def neighbour_term(scale: Scale) -> SelfPatchConfig:
    """SelfPatch's term with the scale's patch head."""
    temperature = scale.teacher_temperature
    return SelfPatchConfig(head=scale.patch_head, teacher_temperature=temperature, centring=scale.centring)


# ------------------------------------------------------------------------------------------------- reference modes

# The README first said 200 epochs; later the command lost the flag and the default became 300.
REFERENCE_PRESETS = {"s200": 200, "s300": 300}


def selfpatch_reference(preset: str, data: str, out: str) -> RunConfig:
    """The published code's choices.

    No class token, one class attention for images and neighbourhoods, positives across the border, the teacher on all
    crops, every view weighed alike. Departures: the image term's centre is of the two large views, as in DINO, not of
    all ten crops; schedules move every step; prototypes stand still for at most a tenth of the run; float32 or
    bfloat16, no float16.

    Never run here at published scale.
    """
    term = SelfPatchConfig(
        aggregation="class_attention",
        border="torus",
        views="all",
        average="view",
        head=HeadConfig(prototypes=4096),
    )
    return RunConfig(
        recipe="selfpatch-reference",
        data=data,
        out=out,
        views=multi_crop(224, 96, 8, global_area=(0.25, 1.0), local_area=(0.05, 0.25), jitter="exact"),
        backbone=BackboneConfig(
            size="small", patch_size=16, image_size=224, drop_path=0.1, pooling="class_attention",
            position_antialias=False, position_offset=0.1,
        ),
        objectives={"image": ImageLevelConfig(head=HeadConfig(prototypes=65536)), "neighbours": term},
        optimiser=OptimiserConfig(),
        teacher=TeacherConfig(),
        training=TrainingConfig(batch_size=1024, epochs=REFERENCE_PRESETS[preset]),
    )  # fmt: skip
