"""glocal recipes [RECIPE] [preset=...] [data=...]."""

from __future__ import annotations

from collections.abc import Sequence

from glocal.cli.screen import plain_table, say, screen
from glocal.cli.settings import split_words
from glocal.config import Config, to_yaml


class RecipesSettings(Config):
    """What `glocal recipes RECIPE` takes beside the settings of a run."""

    data: str | None = None
    """Images to choose the preset for; null: the recipe's first preset."""
    preset: str | None = None
    """One of the recipe's."""
    config: str | None = None
    """A YAML file of settings to lay over it."""


def run(recipe: str | None, words: Sequence[str]) -> None:
    """List all recipes, or print one's configuration and the reasons for it."""
    from glocal.recipes import RECIPES, UNNAMED, configure, find_recipe

    console = screen()
    if recipe is None:
        rows = ((name, ", ".join(entry.presets), entry.summary) for name, entry in RECIPES.items())
        console.print(plain_table("recipe", "presets", "what", rows=rows))
        say(console, "\nglocal recipes RECIPE [preset=...] prints one, resolved.")
        say(console, "glocal pretrain RECIPE data=... out=... runs it.")
        return
    own, overrides = split_words(RecipesSettings, words)
    config = configure(
        recipe, data=own.data or UNNAMED, out="RUN", preset=own.preset, file=own.config, overrides=overrides
    )
    say(console, find_recipe(recipe).documentation, "", to_yaml(config))
