"""Every recipe says which run stands behind it, in one form; what was never run at published scale says so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from glocal.recipes import RECIPES

NEVER = "Never run here at published scale."
MEASURED = re.compile(
    r"Measured (?P<date>\d{4}-\d{2}-\d{2}), (?P<hardware>[^:]+), (?P<hours>[\d.]+) hours: (?P<figures>.+? seeds?)\."
)
RESULTS = (Path(__file__).parents[1] / "docs" / "results.md").read_text()


def provenance(recipe: str) -> str:
    return " ".join((RECIPES[recipe].build.__doc__ or "").split())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_names_its_run_or_that_there_was_none(recipe: str) -> None:
    text = provenance(recipe)
    assert NEVER in text or MEASURED.search(text), (
        f"The docstring of {recipe} ends with the run behind it ('Measured DATE, HARDWARE, N hours: FIGURES, N seeds.') "
        f"or with '{NEVER}'."
    )
    assert text.count("Measured ") == len(MEASURED.findall(text)), f"{recipe}: not in the form of the others"


@pytest.mark.parametrize("recipe", [name for name in RECIPES if MEASURED.search(provenance(name))])
def test_its_figures_are_those_of_the_page_of_results(recipe: str) -> None:
    run = MEASURED.search(provenance(recipe))
    assert run is not None and float(run["hours"]) > 0
    for figure in re.findall(r"\d+\.\d+", run["figures"]):
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.])", RESULTS), (
            f"{recipe}: {figure} is not there"
        )
