"""Weights that enter a run and leave it: those it starts from, and the teacher's backbone that it exports."""

from __future__ import annotations

from pathlib import Path

from glocal.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from glocal.models.encoder import Encoder, LoadReport
from glocal.models.export import export_backbone
from glocal.models.loading import load_into
from glocal.models.vit import VisionTransformer
from glocal.training.config import RunConfig
from glocal.training.network import SelfDistillation


def load_start(model: SelfDistillation, spec: str) -> LoadReport:
    """Start both backbones from released or own weights; a position table of another size is resampled.

    Raises:
        ModelError: when shapes differ from the configured backbone; nothing is loaded in part.
    """
    report = load_into(model.student.backbone, spec)
    model.teacher.backbone.load_state_dict(model.student.backbone.state_dict())
    return report


def export_teacher(folder: Path, backbone: VisionTransformer, config: RunConfig, step: int) -> None:
    """Write the teacher's backbone so that `glocal.load` and timm read it."""
    export_backbone(
        backbone, folder, mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=view_side(config),
        extra={"recipe": config.recipe, "step": step},
    )  # fmt: skip


def as_encoder(config: RunConfig, backbone: VisionTransformer) -> Encoder:
    """A backbone of this run as evaluation takes it."""
    return Encoder(
        name=config.out,
        backbone=backbone,
        embed_dim=backbone.embed_dim,
        patch_size=config.backbone.patch_size,
        image_size=view_side(config),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        report=None,
    )


def view_side(config: RunConfig) -> int:
    """Pixels at which a run's backbone is evaluated: its largest views'."""
    return max(max(group.height_width) for group in config.views.values())
