"""The first losses of every recipe are those that are stored."""

from __future__ import annotations

import json

import pytest
from golden_curves import STORED, curve, is_same

from glocal.recipes import RECIPES

CURVES: dict[str, list[float]] = json.loads(STORED.read_text())


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_first_losses_are_the_stored_ones(recipe: str) -> None:
    assert recipe in CURVES, f"Store its curve: python tests/golden_curves.py {recipe}"
    losses = curve(recipe)
    assert is_same(losses, CURVES[recipe]), (
        f"{recipe} has losses {losses}; stored are {CURVES[recipe]}. A change that is meant: "
        f"python tests/golden_curves.py {recipe}"
    )


def test_a_change_of_one_per_cent_in_one_step_is_seen() -> None:
    losses = CURVES["glocal"]
    for step in range(len(losses)):
        for factor in (0.99, 1.01):
            changed = [loss * factor if number == step else loss for number, loss in enumerate(losses)]
            assert not is_same(changed, losses)
    assert is_same([loss * (1 + 1e-5) for loss in losses], losses)


def test_no_curve_is_left_of_a_recipe_that_is_gone() -> None:
    assert list(CURVES) == list(RECIPES)
