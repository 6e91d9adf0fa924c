"""Overrides are typed, and an unknown key or value fails with the nearest match before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import small_config

from glocal.config import apply_overrides, from_yaml, to_yaml
from glocal.errors import ConfigError
from glocal.objectives import MatchedPatchesConfig
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
def test_overrides_are_typed(override: str, value: Callable[[RunConfig], bool]) -> None:
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
def test_refusals_name_value_and_cure(override: str, says: str | None) -> None:
    if says is None:
        assert list(apply_overrides(small_config(), [override]).active_objectives()) == ["patch"]
        return
    with pytest.raises(ConfigError, match=says):
        apply_overrides(small_config(), [override])


def test_what_no_override_names_stays_the_very_object() -> None:
    """Types are kept on every hop: a term keeps its class, and what lies beside the way is not built again."""
    config = small_config()
    changed = apply_overrides(config, ["objectives.patch.weight={start: 0, end: 1}", "training.epochs=3"])
    assert changed.objectives["image"] is config.objectives["image"]
    assert changed.backbone is config.backbone and changed.views["local"] is config.views["local"]
    assert type(changed.objectives["patch"]) is type(config.objectives["patch"])
    before, after = config.objectives["patch"], changed.objectives["patch"]
    assert isinstance(before, MatchedPatchesConfig) and isinstance(after, MatchedPatchesConfig)
    assert after.head is before.head


def test_text_is_taken_as_it_is_written() -> None:
    config = apply_overrides(
        small_config(), ["data=2024", "out=1e5", "probe.evaluations.knn=07", "init=null"]
    )
    assert (config.data, config.out, config.probe.evaluations, config.init) == (
        "2024",
        "1e5",
        {"knn": "07"},
        None,
    )


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.accumulate=7", "training.batch_size=256 is not divisible by training.accumulate=7."),
        ("seed=[&a [*a]]", "references"),
        ("seed={{{{", "can't be read as YAML"),
        ("training.epochs=2024-13-45", "month must be in 1..12"),
        ("training.epochs=.inf", "finite"),
        (
            "optimiser.weight_decay=x",
            "valid number, .* or input should be a valid dictionary or instance of Schedule",
        ),
        ("seed=" + "[" * 3000, "nested too deeply"),
    ],
)
def test_one_line_says_what_is_wrong(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        apply_overrides(small_config(), [override])
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 400


def test_the_command_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        "data: elsewhere\nout: overwritten\ntraining: {epochs: 7, batch_size: 8}\nobjectives: {patch: null}\n"
    )
    config = configure(
        "pw-self", data="digits", out="RUN", preset="small", file=str(file), overrides=["training.epochs=3"]
    )
    assert (config.data, config.out, config.training.epochs, config.training.batch_size) == (
        "digits",
        "RUN",
        3,
        8,
    )
    assert list(config.objectives) == ["image"]
    assert configure("pw-self", data=None, out="RUN", preset="small", file=str(file)).data == "elsewhere"


def test_a_whole_configuration_is_taken_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    first = configure("pw-self", data="digits", out="A", preset="cifar", overrides=["objectives.patch=null"])
    file.write_text(to_yaml(first))
    again = configure("pw-self", data=None, out="B", file=str(file))
    assert again == first.model_copy(update={"out": "B"})
    with pytest.raises(ConfigError, match="is of recipe 'pw-self', not of 'dino'"):
        configure("dino", data=None, out="B", file=str(file))
    with pytest.raises(ConfigError, match="Leave preset= out"):
        configure("pw-self", data=None, out="B", preset="small", file=str(file))


@pytest.mark.parametrize(
    "content",
    [b"a: [", b"\x00\xff\x89PNG", "größe: 1".encode("latin-1"), b"a: &a [*a]", b"- 1", b"", b"[" * 3000],
)
def test_files_that_hold_no_settings(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        configure("dino", data="digits", out="x", preset="small", file=str(file))
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConfigError, match="directory"):
        configure("dino", data="digits", out="x", preset="small", file=str(tmp_path))


def test_python_settings_are_values() -> None:
    config = configure(
        "pw-self",
        data="digits",
        out="x",
        preset="small",
        settings={"training": {"epochs": 3}, "objectives": {"patch": None}},
    )
    assert config.training.epochs == 3 and list(config.objectives) == ["image"]


def test_no_term_left_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one view group and one objective"):
        apply_overrides(small_config(), ["objectives.image.weight=0", "objectives.patch.weight=0"])


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_preset_of_every_recipe_resolves_and_survives_yaml(recipe: str) -> None:
    for preset in RECIPES[recipe].presets:
        config = configure(recipe, data="DATA", out="RUN", preset=preset)
        assert from_yaml(RunConfig, to_yaml(config)) == config
        assert config.recipe == recipe
    assert find_recipe(recipe).summary.endswith(".")


def test_unknown_recipe_and_preset_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'pw-self'"):
        configure("pwself", data="DATA", out="RUN")
    with pytest.raises(ConfigError, match="Did you mean 'imagenet'"):
        configure("dino", data="DATA", out="RUN", preset="imagnet")


def test_schedules_by_hand() -> None:
    cosine = Schedule(start=1.0, end=0.0, warmup_epochs=1.0)
    at = [cosine.at(Progress(step, 110, 10)) for step in (0, 3, 9, 10, 60, 110)]
    assert at == pytest.approx([0.0, 1 / 3, 1.0, 1.0, 0.5, 0.0])
    linear = Schedule(start=0.04, end=0.07, shape="linear", over_epochs=3)
    assert [linear.at(Progress(step, 100, 10)) for step in (0, 15, 30, 99)] == pytest.approx(
        [0.04, 0.055, 0.07, 0.07]
    )
    by_epoch = Schedule(start=0.04, end=0.07, shape="linear", over_epochs=4, every="epoch")
    assert [by_epoch.at(Progress(step, 100, 10)) for step in (0, 9, 10, 25, 30, 99)] == pytest.approx(
        [0.04, 0.04, 0.05, 0.06, 0.07, 0.07]
    )
    step = Schedule(start=3.0, end=0.3, shape="step", over_epochs=2)
    assert [step.at(Progress(at, 100, 10)) for at in (0, 19, 20, 99)] == pytest.approx([3.0, 3.0, 0.3, 0.3])


def test_warm_up_is_at_most_a_tenth_of_the_run() -> None:
    assert Schedule(start=1.0, end=1.0, warmup_epochs=100).at(Progress(10, 100, 10)) == 1.0
