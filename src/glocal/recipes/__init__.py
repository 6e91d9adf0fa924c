"""Recipes: a function each, returning one complete typed configuration. Overrides and YAML files sit on top."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from glocal.config import apply_overrides, apply_settings, read_settings_file, validate
from glocal.data import ImageSource, open_source
from glocal.errors import ConfigError, nearest_name
from glocal.outside import reason
from glocal.own_code import is_own, load_named
from glocal.recipes import continuing as _continuing
from glocal.recipes import contrast as _contrast
from glocal.recipes import dino as _dino
from glocal.recipes import distil as _distil
from glocal.recipes import local_global as _local_global
from glocal.recipes import mugs as _mugs
from glocal.recipes import self_patch as _self_patch
from glocal.recipes import today as _today
from glocal.recipes.auto import Choice, Settled, nearest_preset, settle, surviving
from glocal.recipes.known import look
from glocal.recipes.scales import SCALES, Scale
from glocal.training.config import RunConfig
from glocal.training.run_folder import read_run_config
from glocal.training.weights import adopt_weights, refuse_contradictions

# What a continued run may change: where its data lies now, how fast and how often; and, since it may be the cure for a
# run that went wrong, how fast it learns from there on. All of it is recorded in resumes.jsonl.
_MAY_CHANGE = (
    "data",
    "speed.*",
    "probe.*",
    "verdict.*",
    "training.stop",
    "training.recorders",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_every",
    "training.accumulate",
    "optimiser.learning_rate",
    "optimiser.muon_learning_rate",
    "optimiser.final_learning_rate",
    "optimiser.weight_decay",
    "optimiser.clip",
    "optimiser.clip_by",
    "teacher.momentum",
    "objectives.*.teacher_temperature",
    "objectives.*.student_temperature",
)


_WHOLE = {"recipe", "views", "backbone", "objectives"}
"""A file that has these holds a whole configuration, such as a run's config.yaml."""
UNNAMED = "DATA"
"""Stands for data that nobody has named yet, when a recipe is only shown."""


AUTO = "auto"
"""The preset that is settled from the images, the machine and the length asked for (`recipes/auto.py`)."""


@dataclass(frozen=True)
class Recipe:
    """A recipe as the command lists it: `build` takes a scale, or, in a reference mode, the name of one of its presets."""

    build: Callable[[Any, str, str], RunConfig]
    presets: tuple[str, ...]

    @property
    def scaled(self) -> bool:
        """Whether it takes a scale."""
        return self.presets[0] == AUTO

    @property
    def summary(self) -> str:
        """First sentence of the function's docstring."""
        return " ".join((self.build.__doc__ or "").split()).split(". ")[0].rstrip(".") + "."

    @property
    def documentation(self) -> str:
        """The function's docstring, and what its presets stand for."""
        text = " ".join((self.build.__doc__ or "").split())
        scales = [f"  preset={p}: {SCALES[p]().why}" for p in self.presets if p in SCALES]
        return "\n".join([text, *scales])


_SCALED = (AUTO, *SCALES)
_REFERENCE = tuple(_local_global.REFERENCE_PRESETS)

RECIPES: dict[str, Recipe] = {
    "glocal": Recipe(_contrast.glocal, _SCALED),
    "simclr": Recipe(_contrast.simclr, _SCALED),
    "continue": Recipe(_continuing.continue_, _SCALED),
    "dino": Recipe(_dino.dino, _SCALED),
    "ibot": Recipe(_today.ibot, _SCALED),
    "dinov2-short": Recipe(_today.dinov2_short, _SCALED),
    "simdino": Recipe(_today.simdino, _SCALED),
    "simdinov2": Recipe(_today.simdinov2, _SCALED),
    "local-global": Recipe(_local_global.local_global, _SCALED),
    "pw-self": Recipe(_local_global.pw_self, _SCALED),
    "local-global-reference": Recipe(_local_global.local_global_reference, _REFERENCE),
    "pw-self-reference": Recipe(_local_global.pw_self_reference, _REFERENCE),
    "selfpatch": Recipe(_self_patch.selfpatch, _SCALED),
    "pw-self-selfpatch": Recipe(_self_patch.pw_self_selfpatch, _SCALED),
    "selfpatch-reference": Recipe(_self_patch.selfpatch_reference, tuple(_self_patch.REFERENCE_PRESETS)),
    "distil": Recipe(_distil.distil, _SCALED),
    "mugs": Recipe(_mugs.mugs, _SCALED),
    "mugs-reference": Recipe(_mugs.mugs_reference, tuple(_mugs.REFERENCE_PRESETS)),
}


def find_recipe(name: str) -> Recipe:
    """The recipe of this name, or one of one's own: `my_recipe.py:recipe`, a function as those in this room.

    Raises:
        ConfigError: naming the nearest one.
    """
    if is_own(name):
        return _own_recipe(name)
    if name not in RECIPES:
        raise ConfigError(
            f"There is no recipe '{name}'.{nearest_name(name, RECIPES)} Recipes: {', '.join(RECIPES)}, or your own: "
            "file.py:NAME."
        )
    return RECIPES[name]


def _own_recipe(words: str) -> Recipe:
    """A function of somebody's own, under the words that name it; its presets are those of every recipe."""
    function = load_named(words, "recipe")
    cure = "A recipe is a function of (scale, data, out) that returns a RunConfig."
    try:
        inspect.signature(function).bind("scale", "data", "out")
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"recipe: {words} can't be called with (scale, data, out): {reason(error)}. {cure}"
        ) from error

    @functools.wraps(function)
    def build(scale: Scale, data: str, out: str) -> RunConfig:
        made = function(scale, data, out)
        if not isinstance(made, RunConfig):
            raise ConfigError(f"recipe: {words} returned a {type(made).__name__}. {cure}")
        return made.model_copy(update={"recipe": words})

    return Recipe(build, _SCALED)


def configure(
    recipe: str,
    *,
    data: str | None,
    out: str,
    preset: str | None = None,
    init: str | None = None,
    file: str | None = None,
    overrides: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Resolve a recipe: its preset (`auto` when None), then a file's settings, then what is given here.

    What is given here beats the file, `data`, `out` and `init` included. A file that holds a whole configuration, such
    as a run's `config.yaml`, stands for recipe and preset.

    Args:
        recipe: a name in `RECIPES`.
        data: what `open_source` reads; None: what the file says.
        out: the run folder.
        preset: one of the recipe's.
        init: weights to start from.
        file: a YAML file of settings.
        overrides: `a.b=c` strings.
        settings: the same as nested plain data.

    Raises:
        ConfigError: for an unknown recipe, preset, key or value, before anything starts.

    >>> configure("dino", data="digits", out="runs/x", preset="small", overrides=["training.epochs=3"]).training.epochs
    3.0
    """
    return resolve(
        recipe,
        data=data,
        out=out,
        preset=preset,
        init=init,
        file=file,
        overrides=overrides,
        settings=settings,
    ).config


class Resolved(NamedTuple):
    """A configuration, and what `preset=auto` settled of it; None where another preset or a whole file was named."""

    config: RunConfig
    settled: Settled | None

    @property
    def reasons(self) -> list[Choice]:
        """What was settled and holds."""
        return [] if self.settled is None else surviving(self.settled.choices, self.config)


def resolve(
    recipe: str,
    *,
    data: str | None,
    out: str,
    preset: str | None = None,
    init: str | None = None,
    file: str | None = None,
    overrides: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Resolved:
    """As `configure`, with the reasons for what `auto` settled."""
    entry = find_recipe(recipe)
    laid = read_settings_file(file) if file is not None else {}
    data = data if data is not None else laid.get("data")
    if data is None:
        raise ConfigError("Missing: data=... .")
    given = {"data": str(data), "out": out} | ({} if init is None else {"init": init})
    if laid.get("recipe", recipe) != recipe:
        raise ConfigError(
            f"config={file} is of recipe '{laid['recipe']}', not of '{recipe}'. Name that recipe."
        )
    settled = None
    if laid.keys() >= _WHOLE:
        if preset not in (None, AUTO):
            raise ConfigError(
                f"preset={preset}: config={file} holds a whole configuration. Leave preset= out."
            )
        adopted = validate(RunConfig, laid | given)
    else:
        base, settled = _base(recipe, entry, preset, str(data), (laid, settings or {}), overrides)
        built = entry.build(base, str(data), out)
        start = init if init is not None else laid.get("init")
        adopted = built if start is None else adopt_weights(built, str(start))
    laid_over = (laid if _WHOLE - laid.keys() else {}) | given
    config = apply_settings(adopted, laid_over, settings or {}, overrides=overrides)
    if config.init is not None:
        refuse_contradictions(config, adopted)
    return Resolved(config, settled)


def _base(
    recipe: str,
    entry: Recipe,
    preset: str | None,
    data: str,
    layers: Sequence[Mapping[str, Any]],
    overrides: Sequence[str],
) -> tuple[Scale | str, Settled | None]:
    """What a recipe is built from: the scale of a preset, or one that is settled from what is known, or a reference's name."""
    preset = preset or entry.presets[0]
    if preset not in entry.presets and not (preset == AUTO and not entry.scaled):
        raise ConfigError(
            f"preset={preset}: recipe '{recipe}' has no such preset.{nearest_name(preset, entry.presets)} Allowed: {', '.join(entry.presets)}."
        )
    if not entry.scaled:
        return (entry.presets[0] if preset == AUTO else preset), None
    if preset == AUTO and data != UNNAMED:
        settled = settle(look(open_source(data), *layers, overrides=overrides))
        return settled.scale, settled
    return SCALES["imagenet" if preset == AUTO else preset](), None


def continue_run(out: str, overrides: Sequence[str], recipe: str | None = None) -> RunConfig:
    """The configuration of the run in `out`, with overrides that its checkpoint can go on with.

    Raises:
        ConfigError: for any other setting, or when the folder holds a run of another recipe.
        TrainingError: when there is no run.
    """
    config = read_run_config(out)
    if recipe is not None and recipe != config.recipe:
        raise ConfigError(
            f"out={out} holds a run of '{config.recipe}', not of '{recipe}'. Continue that, or choose another out=."
        )
    for override in overrides:
        key = override.partition("=")[0]
        if not any(fnmatchcase(key, name) or fnmatchcase(key, f"{name}.*") for name in _MAY_CHANGE):
            raise ConfigError(
                f"{override}: a continued run keeps what its state was made with; only {', '.join(_MAY_CHANGE)} may "
                f"change. Start a new run with init={out} instead."
            )
    return apply_overrides(config.model_copy(update={"out": out}), overrides)


def pretrain(
    recipe: str, *, data: str | Path, out: str | Path, resume: bool | str | Path = False, **settings: Any
) -> Path:
    """Pretrain by recipe and return the run folder.

    `resume` is True, or a checkpoint's path. Settings are the command's: `preset`, `init`, and overrides with `__` for the dot (`training__epochs=3`).

    >>> pretrain("dino", data="digits", out="runs/digits", training__epochs=3)  # doctest: +SKIP
    """
    from glocal.training.loop import pretrain as run

    preset, init = settings.pop("preset", None), settings.pop("init", None)
    nested = _nested(settings)
    if resume:
        overrides = [f"data={data}", *(f"{key}={_as_word(value)}" for key, value in _paths(nested))]
        return run(continue_run(str(out), overrides, recipe), resume=resume)
    return run(configure(recipe, data=str(data), out=str(out), preset=preset, init=init, settings=nested))


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`training__epochs=3` as {"training": {"epochs": 3}}."""
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        *parents, key = name.split("__")
        group = nested
        for parent in parents:
            group = group.setdefault(parent, {})
            if not isinstance(group, dict):
                raise ConfigError(f"{name}: {parent} is given as a whole, too. Give one of them.")
        group[key] = value
    return nested


def _paths(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _paths(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _as_word(value: Any) -> str:
    """A value as it would be typed."""
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).splitlines()[0]


def choose_preset(name: str, source: ImageSource) -> str:
    """The named preset of a recipe that is nearest to these images; a recipe with presets of its own takes the first."""
    recipe = find_recipe(name)
    return str(nearest_preset(look(source)).value) if recipe.scaled else recipe.presets[0]
