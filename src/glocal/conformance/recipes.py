"""What every recipe must do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from glocal.config import from_yaml, to_yaml
from glocal.conformance.small_runs import PROGRESS, frozen_model, make_views
from glocal.conformance.suite import require
from glocal.recipes import configure, find_recipe
from glocal.training.config import RunConfig
from glocal.training.network import StepInput, build_distillation

_NARROW = {"embed_dim": 32, "num_heads": 2, "depth": 2}


def resolves_every_preset(name: str) -> None:
    """Every preset gives a whole configuration that is the same after being written and read."""
    for preset in find_recipe(name).presets:
        config = _configured(name, preset)
        require(
            from_yaml(RunConfig, to_yaml(config)) == config,
            f"preset={preset} differs after being written and read",
        )
        require(config.recipe == name, f"preset={preset} calls itself '{config.recipe}'")


def keeps_data_and_folder(name: str) -> None:
    """It takes images and run folder as they are given, and no seed of its own."""
    config = _configured(name, find_recipe(name).presets[0])
    require((config.data, config.out) == ("digits", "some/run"), f"data={config.data}, out={config.out}")


def takes_a_step(name: str) -> None:
    """Its networks, narrowed to 32 numbers, take a step with a finite loss on its own views."""
    config = _configured(name, find_recipe(name).presets[0])
    if config.backbone.is_ours:
        config = config.model_copy(update={"backbone": config.backbone.model_copy(update=_NARROW)})
    if any(term.build(32, config.views).needs_frozen for term in config.active_objectives().values()):
        config = config.model_copy(
            update={"teacher": config.teacher.model_copy(update={"frozen": frozen_model()})}
        )
    loss, _ = build_distillation(config)(StepInput(make_views(2, config.views, source=256), PROGRESS, False))
    loss.backward()
    require(bool(loss.isfinite()), f"the loss is {float(loss.detach())}")


CHECKS: Sequence[Callable[[str], None]] = (resolves_every_preset, keeps_data_and_folder, takes_a_step)


def _configured(name: str, preset: str) -> RunConfig:
    return configure(name, data="digits", out="some/run", preset=preset)
