"""A recipe of one's own: `glocal pretrain examples/my_recipe.py:calm data=photos/ out=runs/calm`."""

from __future__ import annotations

from glocal.recipes.contrast import glocal
from glocal.recipes.scales import Scale
from glocal.training.config import RunConfig


def calm(scale: Scale, data: str, out: str) -> RunConfig:
    """The flagship at half the weight of its patch term, and smaller steps: for images that look much alike."""
    config = glocal(scale, data, out)
    patch = config.objectives["patch"].model_copy(update={"weight": 0.25})
    optimiser = config.optimiser.model_copy(update={"learning_rate": config.optimiser.learning_rate / 2})
    return config.model_copy(update={"objectives": config.objectives | {"patch": patch}, "optimiser": optimiser})
