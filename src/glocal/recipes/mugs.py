"""Mugs: an image told from others at three granularities: itself, its nearest neighbours, its cluster.

Zhou et al. 2022, "Mugs: A Multi-Granular Self-Supervised Learning Framework", arXiv 2203.14415. Published on
ImageNet-1k, k-NN and linear: ViT-S/16 72.3 and 76.4 (100 epochs), 74.8 and 78.2 (300), 75.6 and 78.9 (800); ViT-B/16
78.0 and 80.6 (400); ViT-L/16 80.3 and 82.1 (250). The authors' figures; not yet reproduced here.

    glocal pretrain mugs data=photos/ out=runs/mine
    glocal pretrain mugs data=photos/ out=runs/without-neighbours objectives.local_group.weight=0
    glocal pretrain mugs-reference data=imagenet/train out=runs/reference preset=s100
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from glocal.models.backbone import BackboneConfig
from glocal.objectives.by_contrast.instance import InstanceConfig
from glocal.objectives.by_contrast.local_group import LocalGroupConfig
from glocal.objectives.by_contrast.queue_contrast import ContrastiveHeadConfig
from glocal.objectives.by_contrast.relation_block import ImageToken
from glocal.objectives.over_prototypes.image_level import ImageLevelConfig
from glocal.objectives.over_prototypes.prototype_term import HeadConfig
from glocal.recipes.dino import dino, image_term
from glocal.recipes.scales import Scale, multi_crop
from glocal.schedules import Schedule
from glocal.training.config import OptimiserConfig, RunConfig, TeacherConfig, TrainingConfig
from glocal.views.groups import Pipeline, ViewGroup
from glocal.views.photometric import presets as photometric


def mugs(scale: Scale, data: str, out: str) -> RunConfig:
    """Mugs with our settings: instance, local-group and group term, weak views for the teacher, weak or strong ones for
    the student. Each term goes by setting its weight to 0. The scale decides crops, head sizes, centring and queues.

    Measured 2026-11-21, one core of an AMD EPYC (Zen 5), 0.06 hours: 500 steps of 64 CIFAR-10 images, k-NN 34.4,
    linear 42.0, correspondence 15.7, mean of 3 seeds. Never run here at published scale.
    """
    head = contrastive_head(scale)
    objectives = {
        "instance": InstanceConfig(head=head, queue=scale.memory_rows),
        "local_group": LocalGroupConfig(head=head, queue=scale.memory_rows, memory=scale.memory_rows),
        "group": image_term(scale).model_copy(update={"pair_weights": "balanced"}),
    }
    update = {"recipe": "mugs", "views": weak_and_strong(scale.views), "objectives": objectives}
    return dino(scale, data, out).model_copy(update=update)


def contrastive_head(scale: Scale) -> ContrastiveHeadConfig:
    """Projection as wide as the scale's prototype head and drawn alike, predictor twice as wide, as in Mugs."""
    head = scale.image_head
    return ContrastiveHeadConfig(
        hidden=head.hidden, out_dim=head.bottleneck, predictor_hidden=2 * head.hidden, init=head.init
    )


def weak_and_strong(
    views: Mapping[str, ViewGroup], strong: Pipeline = photometric.mugs_strong()
) -> dict[str, ViewGroup]:
    """Split DINO's views as Mugs does: the teacher has large weak crops of its own; the student's are weak or strong,
    by one coin for an image's large crops and one for every small crop.
    """
    large = views["global"]
    groups = {
        "teacher": large.model_copy(update={"seen_by": "teacher", "keep_patches": 1.0}),
        "global": large.model_copy(update={"seen_by": "student", "strong": strong, "strong_coin": "image"}),
    }
    if "local" in views:
        groups["local"] = views["local"].model_copy(update={"strong": strong, "strong_coin": "view"})
    return groups


# ------------------------------------------------------------------------------------------------- reference modes


@dataclass(frozen=True)
class _Published:
    """A column of the published recipes."""

    size: str
    epochs: int
    batch: int
    learning_rate: float
    final_learning_rate: float
    decay: tuple[float, float]
    drop_path: float
    temperature: float | Schedule
    frozen_epochs: int
    norm_last_layer: bool = False
    clip: float | Schedule = 3.0


def _warm(epochs: int) -> Schedule:
    return Schedule(start=0.04, end=0.07, shape="linear", over_epochs=epochs, every="epoch")


REFERENCE_PRESETS = {
    "s100": _Published("small", 100, 512, 8e-4, 1e-6, (0.04, 0.2), 0.1, 0.04, 1),
    "s300": _Published("small", 300, 1024, 8e-4, 1e-6, (0.04, 0.1), 0.1, _warm(30), 1),
    "s800": _Published("small", 800, 1024, 8e-4, 1e-6, (0.04, 0.1), 0.1, _warm(30), 1),
    "b400": _Published("base", 400, 1008, 8e-4, 2e-6, (0.04, 0.1), 0.1, _warm(50), 3),
    "l250": _Published("large", 250, 640, 1.5e-3, 1.5e-4, (0.025, 0.08), 0.3, _warm(50), 3, norm_last_layer=True,
                       clip=Schedule(start=3.0, end=0.3, shape="step", over_epochs=101)),
}  # fmt: skip


def mugs_reference(preset: str, data: str, out: str) -> RunConfig:
    """The published code's choices: pairs of equal number left out, queues and memories that start as noise, memories
    whose pointer moves twice as far as was written (objectives.local_group.double_advance=false for one that moves as
    intended), queries and rows of different spaces, each term a third. Departures: schedules move every step, not every
    epoch; random augmentation runs on the crop; keys are enqueued image by image; of three terms with one left out the
    others stay a third each.

    Never run here at published scale.
    """
    published = REFERENCE_PRESETS[preset]
    views = multi_crop(224, 96, 10, global_area=(0.25, 1.0), local_area=(0.05, 0.25), jitter="exact")
    return RunConfig(
        recipe="mugs-reference",
        data=data,
        out=out,
        views=weak_and_strong(views, photometric.mugs_strong(noise="unit")),
        backbone=BackboneConfig(
            size=published.size, patch_size=16, image_size=224, drop_path=published.drop_path,
            position_antialias=False, position_offset=0.1,
        ),
        objectives=_reference_objectives(published),
        optimiser=OptimiserConfig(
            learning_rate=published.learning_rate, final_learning_rate=published.final_learning_rate,
            weight_decay=Schedule(start=published.decay[0], end=published.decay[1]), patch_embed_factor=0.2,
            clip=published.clip,
        ),
        teacher=TeacherConfig(momentum=Schedule(start=0.996, end=1.0)),
        training=TrainingConfig(batch_size=published.batch, epochs=published.epochs),
    )  # fmt: skip


def _reference_objectives(
    published: _Published,
) -> dict[str, InstanceConfig | LocalGroupConfig | ImageLevelConfig]:
    third = 1.0 / 3.0
    return {
        "instance": InstanceConfig(
            weight=third, skip_same_number=True, exclude_own=False, storage="fp32", fill_random=True
        ),
        "local_group": LocalGroupConfig(
            weight=third, skip_same_number=True, exclude_own=False, storage="fp32", fill_random=True,
            double_advance=True, query=ImageToken(norm="before", tokens="all"), row=ImageToken(),
        ),
        "group": ImageLevelConfig(
            weight=third, pair_weights="balanced", skip_same_number=True, teacher_temperature=published.temperature,
            head=HeadConfig(norm_last_layer=published.norm_last_layer, frozen_epochs=published.frozen_epochs),
        ),
    }  # fmt: skip
