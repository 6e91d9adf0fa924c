"""SimCLR, and glocal's own recipe: contrast of images and of matched patches, with no teacher in the loss.

glocal pretrain glocal data=photos/ out=runs/mine
glocal pretrain simclr data=photos/ out=runs/simclr
"""

from __future__ import annotations

from glocal.objectives.by_contrast.contrast import ContrastConfig
from glocal.objectives.by_contrast.matched_contrast import MatchedContrastConfig
from glocal.recipes.dino import dino
from glocal.recipes.scales import SCALES
from glocal.training.config import RunConfig


def simclr(preset: str, data: str, out: str) -> RunConfig:
    """SimCLR: an image's views are told from those of all other images of the step."""
    scale = SCALES[preset]()
    views = {"global": scale.views["global"]}
    update = {"recipe": "simclr", "views": views, "objectives": {"image": ContrastConfig()}}
    return dino(preset, data, out).model_copy(update=update)


def glocal(preset: str, data: str, out: str) -> RunConfig:
    """The flagship: SimCLR's contrast of images and the same of matched patches."""
    config = simclr(preset, data, out)
    objectives = config.objectives | {"patch": MatchedContrastConfig(weight=0.2)}
    return config.model_copy(update={"recipe": "glocal", "objectives": objectives})
