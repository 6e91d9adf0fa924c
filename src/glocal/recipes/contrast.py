"""SimCLR, and glocal's own recipe: contrast of images and of matched patches, with no teacher in the loss.

SimCLR: Chen et al. 2020, "A simple framework for contrastive learning of visual representations", arXiv 2002.05709.
Published for ResNets; the views here are the preset's. What each part of `glocal` is worth stands in docs/ladder.md.

    glocal pretrain glocal data=photos/ out=runs/mine
    glocal pretrain simclr data=photos/ out=runs/simclr
"""

from __future__ import annotations

from glocal.objectives.by_contrast.contrast import ContrastConfig
from glocal.objectives.by_contrast.matched_contrast import MatchedContrastConfig
from glocal.recipes.dino import dino
from glocal.recipes.scales import Scale
from glocal.training.config import RunConfig

AREA = (0.2, 1.0)
"""Smaller crops than DINO's large ones: without small views of their own, these must show parts too."""


def simclr(scale: Scale, data: str, out: str) -> RunConfig:
    """SimCLR: an image's views are told from those of all other images of the step.

    Never run here at published scale.
    """
    views = {"global": scale.views["global"].model_copy(update={"area": AREA})}
    training = scale.training.model_copy(
        update={"batch_size": max(scale.contrast_batch, scale.training.batch_size)}
    )
    update = {
        "recipe": "simclr",
        "views": views,
        "objectives": {"image": ContrastConfig()},
        "training": training,
    }
    return dino(scale, data, out).model_copy(update=update)


def glocal(scale: Scale, data: str, out: str) -> RunConfig:
    """The flagship: images told apart by SimCLR's contrast, and places within and between them by that of matched
    patches.

    Measured 2026-11-21, one core of an AMD EPYC (Zen 5), 0.33 hours: 587,264 CIFAR-10 images, k-NN 65.9, linear
    71.9, correspondence 55.9, mean of 3 seeds. Never run here at published scale.
    """
    config = simclr(scale, data, out)
    objectives = config.objectives | {"patch": MatchedContrastConfig(weight=0.5)}
    return config.model_copy(update={"recipe": "glocal", "objectives": objectives})
