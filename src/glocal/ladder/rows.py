"""What the ladder compares: a row is a recipe with some settings, a ground is a data set with its views and measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glocal.errors import ConfigError, nearest_name
from glocal.recipes import configure
from glocal.training.config import RunConfig


@dataclass(frozen=True)
class Row:
    """One line of the table: a recipe, the settings laid over it and why it is asked."""

    recipe: str
    settings: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Ground:
    """One data set: where it lies below the data folder, at which preset it is trained, what of it is measured."""

    train: str
    test: str | None
    preset: str
    settings: tuple[str, ...] = ()
    camvid: bool = False
    copies: bool = False


# What the flagship and the published recipes owe to the engine rather than to their terms.
_PLAIN = (
    "optimiser.kind=adamw",
    "backbone.patch_embed_init=drawn",
    "backbone.attention_init=drawn",
    "views.global.keep_patches=1",
)

ROWS: dict[str, Row] = {
    "dino": Row("dino"),
    "local-global": Row("local-global"),
    "pw-self": Row("pw-self"),
    "selfpatch": Row("selfpatch"),
    "mugs": Row("mugs"),
    "ibot": Row("ibot"),
    "simdino": Row("simdino"),
    "simclr": Row("simclr"),
    "glocal": Row("glocal", why="the flagship"),
    "dino, AdamW": Row("dino", _PLAIN, "the same without Muon, whitening and dropping"),
    "local-global, AdamW": Row("local-global", _PLAIN, "likewise"),
    "pw-self, AdamW": Row("pw-self", _PLAIN, "likewise"),
    "simclr, AdamW": Row("simclr", _PLAIN, "likewise"),
    "glocal, AdamW": Row("glocal", _PLAIN, "likewise"),
    "glocal without Muon": Row("glocal", ("optimiser.kind=adamw",)),
    "glocal without whitening": Row("glocal", ("backbone.patch_embed_init=drawn",)),
    "glocal without mimetic start": Row("glocal", ("backbone.attention_init=drawn",)),
    "glocal without dropping": Row("glocal", ("views.global.keep_patches=1",)),
    "glocal without patch term": Row("glocal", ("objectives.patch.weight=0",)),
    "glocal + blur per patch": Row(
        "glocal/blur", why="per-patch augmentation in its mildest form, student only"
    ),
    "glocal + colours per patch": Row("glocal/literal", why="PW-Self's augmentation on the contrast terms"),
}

GROUNDS: dict[str, Ground] = {
    "cifar10": Ground("cifar10/train-00000-of-00001.parquet", "cifar10/test-00000-of-00001.parquet", "cifar"),
    "tiny-imagenet": Ground("tiny_imagenet_mini:train", "tiny_imagenet_mini:val", "small"),
    "photographs": Ground("imagenet_sample_1k", None, "small", camvid=True, copies=True),
}

BUDGETS = {"smoke": 2e10, "short": 1e13, "medium": 1.55e14, "cpu": 1e15, "gpu": 1e18}
"""FLOPs a run, by scale: seconds, minutes, ten minutes and two hours of two cores, an hour of a large GPU."""

RATES = (0.5, 1.0, 2.0)
"""Factors of both learning rates that every row tries at a tenth of the budget."""


def run_configuration(
    row: str, ground: str, data: Path, out: Path, *, flops: float, seed: int, rate: float = 1.0,
    overrides: Sequence[str] = (),
) -> RunConfig:  # fmt: skip
    """The complete configuration of one run of the ladder.

    Raises:
        ConfigError: for a row or a ground that does not exist, with the nearest name.
    """
    chosen, place = find_row(row), find_ground(ground)
    recipe, _, operations = chosen.recipe.partition("/")
    budget = (
        f"training.flops={flops}", f"seed={seed}", "speed.precision=bf16", "probe.enabled=false", "verdict.enabled=false"
    )  # fmt: skip
    config = configure(
        recipe, data=str(data / place.train), out=str(out), preset=place.preset,
        overrides=[*place.settings, *chosen.settings, *budget, *overrides],
    )  # fmt: skip
    optimiser = config.optimiser.model_copy(
        update={
            "learning_rate": config.optimiser.learning_rate * rate,
            "muon_learning_rate": config.optimiser.muon_learning_rate * rate,
        }
    )
    config = config.model_copy(update={"optimiser": optimiser})
    return _with_patch_operations(config, operations) if operations else config


def find_row(name: str) -> Row:
    """The row of this name."""
    if name not in ROWS:
        raise ConfigError(f"There is no row '{name}'.{nearest_name(name, ROWS)} Rows: {', '.join(ROWS)}.")
    return ROWS[name]


def find_ground(name: str) -> Ground:
    """The ground of this name."""
    if name not in GROUNDS:
        raise ConfigError(
            f"There is no ground '{name}'.{nearest_name(name, GROUNDS)} Grounds: {', '.join(GROUNDS)}."
        )
    return GROUNDS[name]


def find_scale(name: str) -> float:
    """The FLOPs of this scale."""
    if name not in BUDGETS:
        raise ConfigError(
            f"There is no scale '{name}'.{nearest_name(name, BUDGETS)} Scales: {', '.join(BUDGETS)}."
        )
    return BUDGETS[name]


def _with_patch_operations(config: RunConfig, kind: str) -> RunConfig:
    from glocal.recipes.local_global import with_patch_operations
    from glocal.views.photometric import presets
    from glocal.views.photometric.blur import GaussianBlur

    blur = GaussianBlur(sigma=(0.1, 1.0), probability=0.2, unit="patch", seen_by="student")
    operations = (blur,) if kind == "blur" else presets.patch_literal(probability=0.2, seen_by="student")
    views = {name: with_patch_operations(group, operations) for name, group in config.views.items()}
    return config.model_copy(update={"views": views})
