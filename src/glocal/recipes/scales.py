"""What depends on the size of the images and of the data set, not on the method: shared by all recipes as `preset=`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from glocal.models.backbone import BackboneConfig
from glocal.objectives.over_prototypes.prototype_term import CentringConfig, HeadConfig
from glocal.schedules import Schedule
from glocal.training.config import OptimiserConfig, TeacherConfig, TrainingConfig
from glocal.views.groups import Pipeline, ViewGroup
from glocal.views.photometric import presets as photometric


@dataclass(frozen=True)
class Scale:
    """One size of work. `why` is printed by `glocal recipes`."""

    why: str
    backbone: BackboneConfig
    views: dict[str, ViewGroup]
    image_head: HeadConfig
    patch_head: HeadConfig
    teacher_temperature: float | Schedule
    centring: CentringConfig
    optimiser: OptimiserConfig
    teacher: TeacherConfig
    training: TrainingConfig
    memory_rows: int
    """Of Mugs' queues and memories: far more than a step writes, far fewer than an epoch, so that rows are recent."""
    contrast_batch: int = 256
    """Least images a step of the recipes that tell images apart: the others are what an image is told from."""


def teacher_momentum(steps: float) -> Schedule:
    """The teacher's momentum in a run of about so many steps: a short run's teacher must be a young average.

    DINO's 0.996 averages over 250 steps. With 0.97 to 1 the last weights were still 3.8 points of k-NN behind the
    student's after 300 steps (docs/results.md). The one place of this rule; terms that ask no teacher have their own.
    """
    start = next(value for limit, value in _MOMENTA if steps < limit)
    return Schedule(start=start, end=1.0)


_MOMENTA = ((8_000, 0.97), (20_000, 0.98), (60_000, 0.99), (float("inf"), 0.996))


# What lifts every recipe at small scale (docs/ladder.md). A tenth of the run is warm-up.
MUON = OptimiserConfig(
    kind="muon",
    muon_learning_rate=0.02,
    learning_rate=2e-3,
    scaling="none",
    warmup_epochs=None,
    weight_decay=0.04,
)


def imagenet() -> Scale:
    """ImageNet-like: a hundred thousand images and more, of a few hundred pixels; ViT-S/16 on GPUs (DINO, section 1)."""
    return Scale(
        why="ViT-S/16 as DINO trains it, a mix of two published runs: the epochs of the short one, batch and temperatures of the longer; batch 1024, 2 views of 224 and 8 of 96 pixels, 65,536 prototypes.",
        backbone=BackboneConfig(
            size="small",
            patch_size=16,
            image_size=224,
            drop_path=0.1,
            position_antialias=False,
            position_offset=0.1,
        ),
        views=multi_crop(224, 96, 8, global_area=(0.4, 1.0), local_area=(0.05, 0.4)),
        image_head=HeadConfig(),
        patch_head=HeadConfig(hidden=512, bottleneck=128, prototypes=4096),
        teacher_temperature=Schedule(start=0.04, end=0.07, shape="linear", over_epochs=30, every="epoch"),
        centring=CentringConfig(),
        optimiser=OptimiserConfig(),
        teacher=TeacherConfig(momentum=teacher_momentum(steps=125_000)),
        training=TrainingConfig(batch_size=1024, epochs=100),
        memory_rows=65536,
    )


def small() -> Scale:
    """A thousand to a hundred thousand photographs on a few cores."""
    return Scale(
        why=(
            "Few images and little compute: 64-pixel views of 8-pixel patches, a 128-wide ViT, Sinkhorn, a fast teacher and "
            "1,024 prototypes. Thousands of steps matter more than large batches."
        ),
        backbone=BackboneConfig(
            size="micro",
            embed_dim=128,
            depth=4,
            patch_size=8,
            image_size=64,
            attention_init="mimetic",
            patch_embed_init="whitened",
        ),
        views=multi_crop(64, 32, 4, global_area=(0.35, 1.0), local_area=(0.08, 0.35), keep=0.5),
        image_head=HeadConfig(
            hidden=256, layers=3, bottleneck=64, prototypes=1024, frozen_epochs=0, init="fan_in"
        ),
        patch_head=HeadConfig(
            hidden=256, layers=2, bottleneck=64, prototypes=512, frozen_epochs=0, init="fan_in"
        ),
        teacher_temperature=0.04,
        centring=CentringConfig(method="sinkhorn"),
        optimiser=MUON,
        teacher=TeacherConfig(momentum=teacher_momentum(steps=10_000)),
        training=TrainingConfig(batch_size=64, epochs=100),
        memory_rows=2048,
    )


def cifar() -> Scale:
    """Images of at most 64 pixels: a small ViT on 4-pixel patches that two cores can train."""
    return replace(
        small(),
        why=(
            "32-pixel images: patches of 4 keep an 8x8 grid; no blur, which would wipe out such small images; no small "
            "crops, which cost accuracy in the same time at this size; Sinkhorn, a fast teacher and 1,024 prototypes, "
            "because small batches give the moving centre and the slow teacher too little to go by."
        ),
        backbone=BackboneConfig(
            size="micro",
            embed_dim=128,
            depth=3,
            patch_size=4,
            image_size=32,
            attention_init="mimetic",
            patch_embed_init="whitened",
        ),
        views=multi_crop(32, 16, 0, global_area=(0.35, 1.0), local_area=(0.15, 0.4), blur=False, keep=0.5),
        teacher=TeacherConfig(momentum=teacher_momentum(steps=2_000)),
        training=TrainingConfig(batch_size=128, epochs=5),
        memory_rows=8192,
    )


def medium() -> Scale:
    """Photographs on one GPU, fewer than ImageNet's: ViT-S/16 at 160 pixels, few prototypes, a fast teacher."""
    base = small()
    return replace(
        base,
        why=(
            "Thousands of photographs and a GPU: ViT-S/16 on views of 160 pixels, a 10x10 grid at half the price of 224; "
            "Muon, whitening, half of the patches and 1,024 prototypes as at the small scales. Reasoned, not yet measured."
        ),
        backbone=BackboneConfig(
            size="small",
            patch_size=16,
            image_size=160,
            drop_path=0.1,
            attention_init="mimetic",
            patch_embed_init="whitened",
        ),
        views=multi_crop(160, 64, 4, global_area=(0.35, 1.0), local_area=(0.08, 0.35), keep=0.5),
        image_head=base.image_head.model_copy(update={"hidden": 512, "bottleneck": 128}),
        patch_head=base.patch_head.model_copy(update={"hidden": 512, "bottleneck": 128}),
        optimiser=MUON.model_copy(update={"muon_learning_rate": 0.01}),
        training=TrainingConfig(batch_size=256, epochs=400),
        memory_rows=8192,
    )


SCALES = {"imagenet": imagenet, "medium": medium, "small": small, "cifar": cifar}


def multi_crop(
    global_size: int,
    local_size: int,
    local_count: int,
    *,
    global_area: tuple[float, float],
    local_area: tuple[float, float],
    blur: bool = True,
    jitter: photometric.Form = "affine",
    keep: float = 1.0,
) -> dict[str, ViewGroup]:
    """DINO's views: two large ones for both networks and some small ones for the student, with DINO's colours.

    The student sees a share `keep` of the large views' patches.
    """

    def pipeline(full: Pipeline) -> Pipeline:
        return full if blur else tuple(operation for operation in full if operation.name != "gaussian_blur")

    groups = {
        "global": ViewGroup(
            count=2, size=global_size, area=global_area, keep_patches=keep,
            photometric=(pipeline(photometric.dino_global_1(jitter)), pipeline(photometric.dino_global_2(jitter))),
        )
    }  # fmt: skip
    if local_count:
        groups["local"] = ViewGroup(
            count=local_count, size=local_size, area=local_area, seen_by="student",
            photometric=(pipeline(photometric.dino_local(jitter)),),
        )  # fmt: skip
    return groups
