"""Overrides are typed, and an unknown key or value fails with the nearest match before anything starts."""

from __future__ import annotations

import pytest
from conftest import small_config

from glocal.config import apply_overrides, from_yaml, to_yaml
from glocal.errors import ConfigError
from glocal.recipes import RECIPES, configure, find_recipe
from glocal.schedules import Progress, Schedule
from glocal.training.config import RunConfig


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.epochs=3", lambda c: c.training.epochs == 3.0),
        ("optimiser.learning_rate=1e-4", lambda c: c.optimiser.learning_rate == 1e-4),
        ("views.global.size=64", lambda c: c.views["global"].size == 64),
        ("views.global.size=[32, 64]", lambda c: c.views["global"].height_width == (32, 64)),
        ("objectives.patch.weight=0.5", lambda c: c.objectives["patch"].weight == 0.5),
        ("objectives.patch.weight={start: 0, end: 1}", lambda c: c.objectives["patch"].weight.end == 1.0),
        ("objectives.patch=null", lambda c: list(c.objectives) == ["image"]),
        ("optimiser.clip=null", lambda c: c.optimiser.clip is None),
        (
            "views.global.photometric.0=[{op: grayscale, probability: 0.5}]",
            lambda c: c.views["global"].photometric[0][0].probability == 0.5,
        ),
    ],
)
def test_overrides_are_typed(override, value):
    assert value(apply_overrides(small_config(), [override]))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.epoch=3", "Did you mean 'epochs'"),
        ("trainign.epochs=3", "Did you mean 'training'"),
        ("views.globl.size=32", "Did you mean 'global'"),
        ("optimiser.learning_rate=fast", "optimiser.learning_rate: got 'fast'"),
        ("optimiser.learning_rate=-1", "greater than 0"),
        ("objectives.image.kind=nonsense", "nonsense"),
        ("training.batch_size=1.5", "training.batch_size"),
        ("training", "Write key=value"),
        ("seed.x=1", "single value"),
        ("objectives.ptach=null", "Did you mean 'patch'"),
        ("views.global.photometric.7=[]", "list of 1"),
        ("views.global.size=30", "patches of 8 do not divide"),
        ("views.global.area=[0.5, 1.5]", "at most 1"),
        ("training.accumulate=7", "not divisible"),
        ("objectives.image.weight=0", None),
    ],
)
def test_refusals_name_value_and_cure(override, says):
    if says is None:
        assert list(apply_overrides(small_config(), [override]).active_objectives()) == ["patch"]
        return
    with pytest.raises(ConfigError, match=says):
        apply_overrides(small_config(), [override])


def test_no_term_left_is_refused():
    with pytest.raises(ConfigError, match="at least one view group and one objective"):
        apply_overrides(small_config(), ["objectives.image.weight=0", "objectives.patch.weight=0"])


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_preset_of_every_recipe_resolves_and_survives_yaml(recipe):
    for preset in RECIPES[recipe].presets:
        config = configure(recipe, data="DATA", out="RUN", preset=preset)
        assert from_yaml(RunConfig, to_yaml(config)) == config
        assert config.recipe == recipe
    assert find_recipe(recipe).summary.endswith(".")


def test_unknown_recipe_and_preset_name_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'pw-self'"):
        configure("pwself", data="DATA", out="RUN")
    with pytest.raises(ConfigError, match="Did you mean 'imagenet'"):
        configure("dino", data="DATA", out="RUN", preset="imagnet")


def test_schedules_by_hand():
    cosine = Schedule(start=1.0, end=0.0, warmup_epochs=1.0)
    at = [cosine.at(Progress(step, 110, 10)) for step in (0, 5, 10, 60, 110)]
    assert at == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])
    linear = Schedule(start=0.04, end=0.07, shape="linear", over_epochs=3)
    assert [linear.at(Progress(step, 100, 10)) for step in (0, 15, 30, 99)] == pytest.approx(
        [0.04, 0.055, 0.07, 0.07]
    )
    step = Schedule(start=3.0, end=0.3, shape="step", over_epochs=2)
    assert [step.at(Progress(at, 100, 10)) for at in (0, 19, 20, 99)] == pytest.approx([3.0, 3.0, 0.3, 0.3])


def test_warm_up_is_at_most_a_tenth_of_the_run():
    assert Schedule(start=1.0, end=1.0, warmup_epochs=100).at(Progress(10, 100, 10)) == 1.0
