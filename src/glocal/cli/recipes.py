"""glocal recipes [RECIPE] [preset=...] [data=...]."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from glocal.cli.settings import split_settings
from glocal.config import to_yaml


def run(recipe: str | None, words: Sequence[str]) -> None:
    """List all recipes, or print one's configuration and the reasons for it."""
    from glocal.recipes import RECIPES, UNNAMED, configure, find_recipe

    console = Console(width=140)
    if recipe is None:
        table = Table("recipe", "presets", "what", box=None)
        for name, entry in RECIPES.items():
            table.add_row(name, ", ".join(entry.presets), entry.summary)
        console.print(table)
        console.print(
            "\nglocal recipes RECIPE \\[preset=...] prints one, resolved. glocal pretrain RECIPE data=... out=... runs it."
        )
        return
    own, overrides = split_settings(words, ("data", "preset"))
    config = configure(
        recipe, data=own.get("data", UNNAMED), out="RUN", preset=own.get("preset"), overrides=overrides
    )
    console.print(find_recipe(recipe).documentation, highlight=False)
    console.print()
    console.print(to_yaml(config), highlight=False, markup=False)
