"""glocal recipes [RECIPE] [preset=...] [data=...]."""

from __future__ import annotations

from collections.abc import Sequence

from glocal.cli.pretrain import settled_in_words
from glocal.cli.screen import plain_table, say, screen
from glocal.cli.settings import split_words
from glocal.config import Config, to_yaml


class RecipesSettings(Config):
    """What `glocal recipes RECIPE` takes beside the settings of a run."""

    data: str | None = None
    """Images to settle preset=auto for; null: it is shown as for ImageNet."""
    preset: str = "auto"
    """One of the recipe's."""
    config: str | None = None
    """A YAML file of settings to lay over it."""


def run(recipe: str | None, words: Sequence[str]) -> None:
    """List all recipes, or print one's configuration and the reasons for it."""
    from glocal.recipes import RECIPES, UNNAMED, find_recipe, resolve

    console = screen()
    if recipe is None:
        rows = ((name, ", ".join(entry.presets), entry.summary) for name, entry in RECIPES.items())
        console.print(plain_table("recipe", "presets", "what", rows=rows))
        say(console, "\nglocal recipes RECIPE [preset=...] prints one, resolved.")
        say(console, "glocal pretrain RECIPE data=... out=... runs it.")
        return
    options, overrides = split_words(RecipesSettings, words)
    resolved = resolve(
        recipe,
        data=options.data or UNNAMED,
        out="RUN",
        preset=options.preset,
        file=options.config,
        overrides=overrides,
    )
    say(console, find_recipe(recipe).documentation, *settled_in_words(resolved), "", to_yaml(resolved.config))
