"""The views of the `*-reference` recipes against the published settings, line by line."""

from __future__ import annotations

import pytest

from glocal.recipes import RECIPES, configure
from glocal.training.config import RunConfig
from glocal.views.photometric.blur import GaussianBlur
from glocal.views.photometric.colour import ColorJitter
from glocal.views.photometric.composite import RandAugment, SomeOf
from glocal.views.photometric.erasing import RandomErasing
from glocal.views.photometric.operation import OperationBase

REFERENCES = {
    "local-global-reference": ("imagenet1k", (0.4, 1.0), (0.05, 0.4), 8),
    "pw-self-reference": ("imagenet100", (0.4, 1.0), (0.05, 0.4), 8),
    "selfpatch-reference": ("s200", (0.25, 1.0), (0.05, 0.25), 8),
    "mugs-reference": ("s100", (0.25, 1.0), (0.05, 0.25), 10),
}


def _operations(config: RunConfig) -> list[OperationBase]:
    pipelines = [p for group in config.views.values() for p in (*group.photometric, group.strong or ())]
    return [
        member
        for pipeline in pipelines
        for operation in pipeline
        for member in (operation.pool if isinstance(operation, SomeOf) else (operation,))
    ]


def test_every_reference_recipe_is_here() -> None:
    assert set(REFERENCES) == {name for name in RECIPES if name.endswith("-reference")}


@pytest.mark.parametrize("recipe", REFERENCES)
def test_views_are_the_published_ones(recipe: str) -> None:
    preset, large, small, count = REFERENCES[recipe]
    config = configure(recipe, data="digits", out="x", preset=preset)
    for name, group in config.views.items():
        local = name == "local"
        assert group.height_width == ((96, 96) if local else (224, 224))
        assert group.area == (small if local else large) and group.aspect == (3 / 4, 4 / 3)
        assert group.count == (count if local else 2) and group.flip == 0.5
        blurred = [0.5] if local else [1.0, 0.1]
        for pipeline, blur in zip(group.photometric, blurred, strict=True):
            jitter, gray, gaussian, *rest = pipeline
            assert isinstance(jitter, ColorJitter) and jitter.probability == 0.8
            assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.4, 0.4, 0.2, 0.1)
            assert (gray.name, gray.probability) == ("grayscale", 0.2)
            assert isinstance(gaussian, GaussianBlur)
            assert (gaussian.name, gaussian.probability, gaussian.sigma) == (
                "gaussian_blur",
                blur,
                (0.1, 2.0),
            )
            image_level = [(op.name, op.probability) for op in rest if op.unit == "image"]
            assert image_level == ([("solarise", 0.2)] if blur == 0.1 else [])


@pytest.mark.parametrize("recipe", REFERENCES)
def test_colours_are_torchvisions(recipe: str) -> None:
    """Clipped after each of four steps in random order, hue in HSV; the affine form is 6 levels of 255 off."""
    config = configure(recipe, data="digits", out="x", preset=REFERENCES[recipe][0])
    jitters = [op for op in _operations(config) if isinstance(op, ColorJitter)]
    assert len(jitters) >= 3 and all(jitter.form == "exact" for jitter in jitters)


def test_strong_views_of_mugs() -> None:
    config = configure("mugs-reference", data="digits", out="x", preset="s100")
    assert {group.seen_by for group in config.views.values()} == {"teacher", "student"}
    for name in ("global", "local"):
        group = config.views[name]
        assert group.strong is not None and group.strong_probability == 0.5
        augment, erasing = group.strong
        assert isinstance(augment, RandAugment) and isinstance(erasing, RandomErasing)
        assert (augment.count, augment.each, augment.magnitude, augment.magnitude_std) == (2, 0.5, 9.0, 0.5)
        assert (erasing.probability, erasing.area, erasing.aspect) == (0.25, (0.02, 1 / 3), (0.3, 3.3))
        assert erasing.noise == "unit", "deviation 4.4 after normalisation"
