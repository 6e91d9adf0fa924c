"""glocal pretrain RECIPE data=... out=... [a.b=c ...]."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glocal.cli.settings import describe, flag, require, split_settings
from glocal.errors import ConfigError

OWN = ("data", "out", "preset", "resume", "config", "init")


def run(recipe: str | None, words: Sequence[str], help: bool) -> None:
    """Resolve the configuration, then train. Everything that can be refused is refused before training starts."""
    if help or recipe is None:
        _print_help()
        return
    from glocal.recipes import configure, continue_run
    from glocal.report.views import draw_start
    from glocal.training.loop import pretrain

    own, overrides = split_settings(words, OWN)
    require(own, "out")
    if flag(own.get("resume", "false"), "resume"):
        for name in ("preset", "config", "init"):
            if name in own:
                raise ConfigError(
                    f"{name}= can't go with resume=true: a continued run keeps the configuration it was started with."
                )
        if "data" in own:
            overrides.append(f"data={own['data']}")
        pretrain(continue_run(own["out"], overrides, recipe), resume=True)
        return
    require(own, "data")
    config = configure(
        recipe, data=own["data"], out=own["out"], preset=own.get("preset"), init=own.get("init"),
        file=own.get("config"), overrides=overrides,
    )  # fmt: skip
    pretrain(config, at_start=draw_start)


def _print_help() -> None:
    from glocal.objectives.over_prototypes.image_level import ImageLevelConfig
    from glocal.recipes import RECIPES
    from glocal.training.config import RunConfig
    from glocal.views.groups import ViewGroup

    console = Console(width=140)
    usage = "[preset=...] [init=MODEL] [config=FILE.yaml] [resume=true] [a.b=c ...]"
    console.print(f"[bold]glocal pretrain RECIPE data=DATA out=FOLDER[/] {escape(usage)}\n")
    console.print(f"Recipes: {', '.join(RECIPES)}. `glocal recipes RECIPE` shows one resolved, with reasons.")
    console.print(
        "Data: a folder of images, a list file, parquet files, or digits, photos, photos-tiles, cifar10, cifar100.\n"
    )
    table = Table("setting", "default (a recipe may set another)", "meaning", box=None)
    rows = describe(RunConfig)
    rows += describe(ViewGroup, "views.NAME.") + describe(ImageLevelConfig, "objectives.NAME.")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
