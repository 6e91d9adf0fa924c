"""Recipes: a function each, returning one complete typed configuration. Overrides and YAML files sit on top."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from glocal.config import apply_overrides
from glocal.data import ImageSource, open_source
from glocal.errors import ConfigError, nearest_name
from glocal.recipes import dino as _dino
from glocal.recipes import local_global as _local_global
from glocal.recipes import mugs as _mugs
from glocal.recipes import self_patch as _self_patch
from glocal.recipes.scales import SCALES, choose_scale
from glocal.training.config import RunConfig
from glocal.training.run_folder import read_run_config
from glocal.training.weights import adopt_weights, refuse_contradictions

# What a continued run may change: where its data lies now, and how fast, how often and how long it goes.
_MAY_CHANGE = (
    "data",
    "speed.",
    "probe.",
    "verdict.",
    "training.stop",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_every",
)


UNNAMED = "DATA"
"""Stands for data that nobody has named yet, when a recipe is only shown."""


@dataclass(frozen=True)
class Recipe:
    """A recipe as the command lists it."""

    build: Callable[[str, str, str], RunConfig]
    presets: tuple[str, ...]

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return " ".join((self.build.__doc__ or "").split(". ")[0].split()).rstrip(".") + "."

    @property
    def documentation(self) -> str:
        """The function's docstring, and what its presets stand for."""
        text = " ".join((self.build.__doc__ or "").split())
        scales = [f"  preset={p}: {SCALES[p]().why}" for p in self.presets if p in SCALES]
        return "\n".join([text, *scales])


_SCALED = tuple(SCALES)
_REFERENCE = tuple(_local_global.REFERENCE_PRESETS)

RECIPES: dict[str, Recipe] = {
    "dino": Recipe(_dino.dino, _SCALED),
    "local-global": Recipe(_local_global.local_global, _SCALED),
    "pw-self": Recipe(_local_global.pw_self, _SCALED),
    "local-global-reference": Recipe(_local_global.local_global_reference, _REFERENCE),
    "pw-self-reference": Recipe(_local_global.pw_self_reference, _REFERENCE),
    "selfpatch": Recipe(_self_patch.selfpatch, _SCALED),
    "pw-self-selfpatch": Recipe(_self_patch.pw_self_selfpatch, _SCALED),
    "selfpatch-reference": Recipe(_self_patch.selfpatch_reference, tuple(_self_patch.REFERENCE_PRESETS)),
    "mugs": Recipe(_mugs.mugs, _SCALED),
    "mugs-reference": Recipe(_mugs.mugs_reference, tuple(_mugs.REFERENCE_PRESETS)),
}


def find_recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        ConfigError: naming the nearest one.
    """
    if name not in RECIPES:
        raise ConfigError(
            f"There is no recipe '{name}'.{nearest_name(name, RECIPES)} Recipes: {', '.join(RECIPES)}."
        )
    return RECIPES[name]


def configure(
    recipe: str,
    *,
    data: str,
    out: str,
    preset: str | None = None,
    init: str | None = None,
    file: str | None = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Resolve a recipe: the preset (chosen from the data when None), then a YAML file's settings, then overrides.

    Raises:
        ConfigError: for an unknown recipe, preset, key or value, before anything starts.

    >>> configure("dino", data="digits", out="runs/x", preset="small", overrides=["training.epochs=3"]).training.epochs
    3.0
    """
    found = find_recipe(recipe)
    if preset is None:
        preset = found.presets[0] if data == UNNAMED else choose_preset(recipe, open_source(data))
    if preset not in found.presets:
        raise ConfigError(
            f"preset={preset}: recipe '{recipe}' has no such preset.{nearest_name(preset, found.presets)} Allowed: {', '.join(found.presets)}."
        )
    config = found.build(preset, data, out)
    adopted = config if init is None else adopt_weights(config, init)
    config = _apply_file(adopted, Path(file)) if file is not None else adopted
    config = apply_overrides(config, overrides)
    if init is not None:
        refuse_contradictions(config, adopted)
    return config


def continue_run(out: str, overrides: Sequence[str], recipe: str | None = None) -> RunConfig:
    """The configuration of the run in `out`, with overrides that may not change its results.

    Raises:
        ConfigError: for a setting that decides results, or when the folder holds a run of another recipe.
        TrainingError: when there is no run.
    """
    config = read_run_config(out)
    if recipe is not None and recipe != config.recipe:
        raise ConfigError(
            f"out={out} holds a run of '{config.recipe}', not of '{recipe}'. Continue that, or choose another out=."
        )
    for override in overrides:
        if not override.startswith(_MAY_CHANGE):
            raise ConfigError(
                f"{override}: a continued run keeps what decides its results; only {', '.join(_MAY_CHANGE)} may change. "
                f"Start a new run with init={out} instead."
            )
    return apply_overrides(config.model_copy(update={"out": out}), overrides)


def pretrain(recipe: str, *, data: str, out: str, resume: bool = False, **settings: Any) -> Path:
    """Pretrain by recipe and return the run folder.

    Settings are the command's: `preset`, `init`, and overrides with `__` for the dot (`training__epochs=3`).

    >>> pretrain("dino", data="digits", out="runs/digits", training__epochs=3)  # doctest: +SKIP
    """
    from glocal.training.loop import pretrain as run

    preset, init = settings.pop("preset", None), settings.pop("init", None)
    overrides = [
        f"{key.replace('__', '.')}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}"
        for key, value in settings.items()
    ]
    if resume:
        return run(continue_run(out, [f"data={data}", *overrides], recipe), resume=True)
    return run(configure(recipe, data=data, out=out, preset=preset, init=init, overrides=overrides))


def choose_preset(name: str, source: ImageSource) -> str:
    """The preset of a recipe that suits these images; a recipe with presets of its own takes the first."""
    recipe = find_recipe(name)
    return choose_scale(source)[0] if recipe.presets == _SCALED else recipe.presets[0]


def _apply_file(config: RunConfig, path: Path) -> RunConfig:
    """Lay a YAML file's (partial) settings over a configuration."""
    if not path.exists():
        raise ConfigError(f"config={path}: there is no such file.")
    settings = yaml.safe_load(path.read_text())
    if not isinstance(settings, dict):
        raise ConfigError(f"config={path}: expected a mapping of settings, got {type(settings).__name__}.")
    return apply_overrides(
        config,
        [
            f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}"
            for key, value in _flatten(settings)
        ],
    )


def _flatten(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in settings.items():
        rows += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return rows
