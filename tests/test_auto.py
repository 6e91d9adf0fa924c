"""`preset=auto`: what the rules make of situations, that they leave the measured runs alone, and that people overrule them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import run

from glocal.data import open_source
from glocal.errors import ConfigError
from glocal.ladder.expectation import expectations, records_of_this_version
from glocal.ladder.study import read_records
from glocal.models.backbone import SIZES
from glocal.recipes import RECIPES, configure, resolve
from glocal.recipes.auto import Settled, flops_an_image, in_words, settle
from glocal.recipes.known import Known, Length, look
from glocal.recipes.scales import SCALES, cifar, imagenet, medium
from glocal.training.config import RunConfig
from glocal.views.photometric.colour import ColorJitter

ROOT = Path(__file__).parents[1]

SITUATIONS = {
    "CIFAR-10, two cores": Known(50_000, 32),
    "CIFAR-10, two cores, 12 minutes": Known(50_000, 32, length=Length("minutes", 12)),
    "CIFAR-10, two cores, 1e15 FLOPs": Known(50_000, 32, length=Length("flops", 1e15)),
    "CIFAR-10, a GPU, an hour": Known(50_000, 32, gpus=1, length=Length("minutes", 60)),
    "1,000 photographs, two cores, an hour": Known(1_000, 192, length=Length("minutes", 60)),
    "200 photographs, two cores": Known(200, 300),
    "3,000 photographs, a GPU": Known(3_000, 500, gpus=1),
    "1.28 M photographs, 8 GPUs": Known(1_281_167, 400, gpus=8),
    "1,797 grey pictures of 8 pixels": Known(1_797, 8, grey=True),
}


def built(recipe: str, settled: Settled) -> RunConfig:
    return RECIPES[recipe].build(settled.scale, "DATA", "RUN")


SCALED = [name for name, recipe in RECIPES.items() if recipe.scaled]


@pytest.mark.parametrize("recipe", SCALED)
def test_the_measured_runs_stand(recipe: str) -> None:
    """CIFAR-10 on two cores is preset=cifar, and ImageNet on eight GPUs preset=imagenet, in every recipe."""
    assert built(recipe, settle(SITUATIONS["CIFAR-10, two cores"])) == RECIPES[recipe].build(
        cifar(), "DATA", "RUN"
    )
    assert settle(SITUATIONS["1.28 M photographs, 8 GPUs"]).scale == imagenet()


@pytest.mark.parametrize(
    "length", [Length("flops", 1.55e14), Length("minutes", 12), Length("images", 587_264)]
)
def test_the_flagship_stands(length: Length) -> None:
    settled = settle(Known(50_000, 32, length=length))
    assert built("glocal", settled) == RECIPES["glocal"].build(cifar(), "DATA", "RUN")


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("recipe", SCALED)
def test_every_recipe_takes_every_situation(recipe: str, situation: str) -> None:
    known = SITUATIONS[situation]
    config = built(recipe, settle(known))
    RunConfig.model_validate(config.model_dump(mode="json"))
    assert config.training.batch_size <= known.images


def test_photographs_on_a_gpu_lie_between_the_small_ones_and_imagenet() -> None:
    settled = settle(SITUATIONS["3,000 photographs, a GPU"])
    assert settled.preset.value == "medium" and settled.scale == replace(
        medium(), training=medium().training.model_copy(update={"epochs": 800.0})
    )
    assert (
        SCALES["small"]().backbone.image_size
        < settled.scale.backbone.image_size
        < imagenet().backbone.image_size
    )
    assert settled.scale.backbone.dimensions == SIZES["small"]


def test_an_hour_of_two_cores_keeps_photographs_small() -> None:
    scale = settle(SITUATIONS["1,000 photographs, two cores, an hour"]).scale
    assert scale.backbone == SCALES["small"]().backbone
    assert scale.image_head.prototypes == 512, "never more groups than images"


def test_long_budgets_take_larger_models() -> None:
    sizes = [
        settle(Known(50_000, 32, length=Length("flops", flops))).scale.backbone.dimensions
        for flops in (1e13, 1.55e14, 1e15, 1e17, 1e19, 1e20)
    ]
    assert [size.embed_dim for size in sizes] == [128, 128, 192, 192, 384, 768]
    assert [size.depth for size in sizes] == [3, 3, 4, 12, 12, 12]


def test_few_grey_and_tiny_images() -> None:
    few = settle(SITUATIONS["200 photographs, two cores"]).scale
    assert few.training.epochs == 400 and few.image_head.prototypes == 128
    assert built("glocal", settle(SITUATIONS["200 photographs, two cores"])).training.batch_size == 64
    tiny = settle(SITUATIONS["1,797 grey pictures of 8 pixels"]).scale
    assert (tiny.views["global"].size, tiny.backbone.patch_size) == (16, 2)
    operations = [operation for pipeline in tiny.views["global"].photometric for operation in pipeline]
    assert {operation.name for operation in operations} == {"color_jitter", "solarise"}
    jitter = next(operation for operation in operations if isinstance(operation, ColorJitter))
    assert (jitter.saturation, jitter.hue) == (0, 0) and jitter.brightness > 0


def test_the_arithmetic_of_a_visit_is_that_of_the_record() -> None:
    """The flagship's recorded run: FLOPs counted by torch, over images seen."""
    record = json.loads((ROOT / "benchmarks" / "ladder.jsonl").read_text().splitlines()[0])
    counted = record["flops"] / record["images"]
    scale = cifar()
    assert flops_an_image(scale.backbone, scale.views) == pytest.approx(counted, rel=0.1)


def test_what_was_measured_for_such_a_run_is_said() -> None:
    """The recorded flagship runs, and no other length, recipe or setting."""
    records = read_records(records_of_this_version())
    config = built("glocal", settle(Known(50_000, 32, length=Length("flops", 1.55e14))))
    said = expectations(config, 1.55e14, records)
    assert len(said) == 1 and "on cifar10: knn " in said[0] and "correspondence" in said[0]
    assert expectations(config, 3.1e14, records) == []
    assert expectations(config.model_copy(update={"recipe": "simclr"}), 1.55e14, records) == []
    shallower = config.backbone.model_copy(update={"depth": 2})
    assert expectations(config.model_copy(update={"backbone": shallower}), 1.55e14, records) == []


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_what_is_known_is_read_from_images_and_settings(photos: Path) -> None:
    source = open_source(str(photos))
    known = look(source, overrides=["training.minutes=3", "speed.device=cpu", "backbone.depth=2"])
    assert (known.images, known.side, known.grey, known.gpus) == (20, 70, False, 0)
    assert known.length == Length("minutes", 3.0) and known.cores >= 1
    assert look(source).length is None
    assert look(source, {"training": {"epochs": 7}}).length == Length("epochs", 7.0)
    for file in photos.glob("*.png"):
        Image.open(file).convert("L").save(file)
    assert look(open_source(str(photos))).grey


def test_lengths_that_contradict_each_other_are_refused(photos: Path) -> None:
    with pytest.raises(ConfigError, match="both say how long"):
        configure("glocal", data=str(photos), out="x", overrides=["training.minutes=3", "training.flops=1e9"])


def test_a_person_overrules_and_is_not_contradicted(photos: Path) -> None:
    words = ["training.batch_size=6", "backbone.depth=2", "training.steps=5"]
    resolved = resolve("dino", data=str(photos), out="x", overrides=words)
    assert resolved.config.training.batch_size == 6 and resolved.config.backbone.depth == 2
    told = {choice.setting for choice in resolved.reasons}
    assert "training.steps" in told and "optimiser.muon_learning_rate" in told
    assert not told & {"training.batch_size", "backbone.dimensions", "training.epochs"}
    assert resolve("dino", data=str(photos), out="x", preset="small").settled is None


def test_a_recipes_own_settings_are_told_as_its_own(photos: Path) -> None:
    """The flagship has no prototypes and no temperature of a teacher: nothing is said of them."""
    told = {choice.setting for choice in resolve("glocal", data=str(photos), out="x").reasons}
    assert not told & {"objectives.image.head.prototypes", "objectives.image.teacher_temperature"}
    assert "training.epochs" in told


def test_the_command_says_what_was_settled_and_why(photos: Path) -> None:
    said = run("recipes", "glocal", f"data={photos}").output
    assert "preset: auto, from 'small', because there are 20 images of about 70 pixels" in said
    assert "training.epochs: 400, because" in said and "preset= names another" in said


def test_the_page_shows_what_comes_out() -> None:
    rows = []
    for situation, known in SITUATIONS.items():
        settled = settle(known)
        scale = settled.scale
        views = ", ".join(f"{group.count} of {group.size}" for group in scale.views.values())
        cells = (
            situation, settled.preset.value, views, scale.backbone.patch_size, in_words(scale.backbone.dimensions),
            f"{settled.flops:.0e}", f"{scale.training.epochs:g}" if known.length is None else "as asked",
            scale.training.batch_size, scale.image_head.prototypes, in_words(scale.teacher.momentum),
        )  # fmt: skip
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    table = "\n".join(rows)
    assert table in (ROOT / "docs" / "auto.md").read_text(), f"docs/auto.md: put there\n{table}"
