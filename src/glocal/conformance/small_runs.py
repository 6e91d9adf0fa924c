"""A run small enough for hundreds of checks: a ViT of two blocks, two groups of views, and batches made of noise."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from glocal.models.backbone import BackboneConfig
from glocal.models.export import export_backbone
from glocal.models.vit import VisionTransformer
from glocal.objectives import HeadConfig, ImageLevelConfig, MatchedPatchesConfig
from glocal.schedules import Progress
from glocal.training.config import RunConfig
from glocal.views.batch import ViewBatch, Views
from glocal.views.groups import ViewGroup

SMALL_HEAD = HeadConfig(hidden=32, layers=2, bottleneck=16, prototypes=24, frozen_epochs=0)
GROUPS = {
    "global": ViewGroup(count=2, size=32, area=(0.4, 1.0)),
    "local": ViewGroup(count=3, size=16, area=(0.1, 0.4), seen_by="student"),
}
PROGRESS = Progress(step=50, total_steps=100, steps_per_epoch=10)


def small_config(**update: object) -> RunConfig:
    """A run of a 32-wide, 2-deep ViT on digits with an image and a patch term."""
    config = RunConfig(
        recipe="test",
        data="digits",
        out="unused",
        views=GROUPS,
        backbone=BackboneConfig(
            size="micro", embed_dim=32, depth=2, num_heads=2, patch_size=8, image_size=32
        ),
        objectives={
            "image": ImageLevelConfig(head=SMALL_HEAD),
            "patch": MatchedPatchesConfig(head=SMALL_HEAD),
        },
    )
    return config.model_copy(update=update)


def make_views(
    batch: int, groups: Mapping[str, ViewGroup] = GROUPS, seed: int = 0, source: int = 64
) -> Views:
    """Random pixels with boxes and flips that lie in a square source."""
    generator = torch.Generator().manual_seed(seed)

    def group(settings: ViewGroup) -> ViewBatch:
        height, width = settings.height_width
        shape = (batch, settings.count)
        low, high = (source * area**0.5 for area in settings.area)
        sides = (low + (high - low) * torch.rand(*shape, 2, generator=generator)).floor()
        corner = ((source - sides) * torch.rand(*shape, 2, generator=generator)).floor()
        return ViewBatch(
            pixels=torch.randn(*shape, 3, height, width, generator=generator),
            box=torch.cat([corner, sides], dim=-1),
            flip=torch.rand(shape, generator=generator) < 0.5,
            strong=torch.rand(shape, generator=generator) < 0.5,
        )

    return Views(
        groups={name: group(settings) for name, settings in groups.items()},
        seed=torch.randint(2**62, (batch,), generator=generator),
        index=torch.arange(batch),
        source_size=torch.full((batch, 2), source),
    )


@functools.cache
def frozen_model() -> str:
    """A frozen teacher of another width, for the terms that need one: its folder."""
    torch.manual_seed(0)
    config = BackboneConfig(size="micro", embed_dim=48, depth=1, num_heads=4, patch_size=16, image_size=32)
    folder = Path(tempfile.mkdtemp(prefix="glocal-frozen-"))
    return str(
        export_backbone(VisionTransformer(config), folder, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    )
