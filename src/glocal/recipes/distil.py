"""Distil: a frozen, larger model teaches a smaller backbone on unlabelled images, for the image and for every patch.

glocal pretrain distil data=photos/ out=runs/small teacher.frozen=runs/large
glocal pretrain distil data=photos/ out=runs/small teacher.frozen=timm:NAME teacher.frozen_size=224
"""

from __future__ import annotations

from glocal.objectives.by_regression.distil import DistilConfig
from glocal.recipes.dino import dino
from glocal.recipes.scales import Scale
from glocal.training.config import RunConfig


def distil(scale: Scale, data: str, out: str) -> RunConfig:
    """A frozen model's embeddings of the image and of matched patches, on DINO's views; needs teacher.frozen=MODEL.

    Never run here at published scale.
    """
    objectives = {"distil": DistilConfig()}
    return dino(scale, data, out).model_copy(update={"recipe": "distil", "objectives": objectives})
