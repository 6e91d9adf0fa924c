"""DINO: image-level self-distillation with multi-crop.

Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", ICCV. Published with ViT-S/16 on
ImageNet-1k, 8 GPUs: 100 epochs in 1.75 days, k-NN 69.3 and linear 74.0; 800 epochs 74.5 and 77.0 (the authors' figures;
not yet reproduced here).

    glocal pretrain dino data=imagenet/train out=runs/dino preset=imagenet
    glocal pretrain dino data=photos/ out=runs/mine
"""

from __future__ import annotations

from glocal.objectives.over_prototypes.image_level import ImageLevelConfig
from glocal.recipes.scales import Scale
from glocal.training.config import RunConfig


def dino(scale: Scale, data: str, out: str) -> RunConfig:
    """DINO at one of the scales.

    Measured 2026-11-20, two cores of an AMD EPYC (Zen 5), 0.2 hours: 5 epochs of CIFAR-10, k-NN 46.8, one seed.
    Never run here at published scale.
    """
    return RunConfig(
        recipe="dino",
        data=data,
        out=out,
        views=scale.views,
        backbone=scale.backbone,
        objectives={"image": image_term(scale)},
        optimiser=scale.optimiser,
        teacher=scale.teacher,
        training=scale.training,
    )


def image_term(scale: Scale) -> ImageLevelConfig:
    """DINO's term with the scale's head and temperatures; the same in every recipe that has it."""
    return ImageLevelConfig(
        head=scale.image_head, teacher_temperature=scale.teacher_temperature, centring=scale.centring
    )
