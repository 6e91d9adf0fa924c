"""SelfPatch's recipes: one term away from their own bases, and the published table."""

from __future__ import annotations

import pytest
from narrowing import of_kind

from glocal.objectives import ImageLevelConfig, SelfPatchConfig
from glocal.recipes import configure
from glocal.training.network import build_distillation


@pytest.mark.parametrize("preset", ["imagenet", "cifar", "small"])
def test_recipes_differ_from_dino_and_pw_self_by_one_term(preset: str) -> None:
    found = {
        name: configure(name, data="DATA", out="RUN", preset=preset)
        for name in ("dino", "selfpatch", "pw-self", "pw-self-selfpatch")
    }
    for with_term, without in (("selfpatch", "dino"), ("pw-self-selfpatch", "pw-self")):
        config = configure(
            with_term, data="DATA", out="RUN", preset=preset, overrides=["objectives.neighbours.weight=0"]
        )
        assert config.active_objectives() == found[without].objectives
        same = {"recipe": "", "objectives": {}}
        assert config.model_copy(update=same) == found[without].model_copy(update=same)
        term = of_kind(SelfPatchConfig, found[with_term].objectives["neighbours"])
        assert (term.weight, term.border, term.aggregation) == (0.1, "clip", "mean")
    if preset != "imagenet":  # 65,536 prototypes take a second to draw.
        assert set(build_distillation(found["pw-self-selfpatch"]).terms()) == {"image", "patch", "neighbours"}


def test_reference_is_the_published_table() -> None:
    for preset, epochs in (("s200", 200), ("s300", 300)):
        config = configure("selfpatch-reference", data="DATA", out="RUN", preset=preset)
        assert (config.training.epochs, config.training.batch_size) == (epochs, 1024)
        assert config.optimiser.learning_rate * 1024 / 256 == pytest.approx(2e-3)
        image = of_kind(ImageLevelConfig, config.objectives["image"])
        term = of_kind(SelfPatchConfig, config.objectives["neighbours"])
        assert (image.head.prototypes, term.head.prototypes, term.head.hidden) == (65536, 4096, 2048)
        assert (term.weight, term.k, term.border, term.include_self, term.views) == (
            0.1,
            4,
            "torus",
            False,
            "all",
        )
        assert (image.teacher_temperature, term.teacher_temperature, config.backbone.pooling) == (
            0.04,
            0.04,
            "class_attention",
        )
        assert (config.views["global"].area, config.views["local"].area) == ((0.25, 1.0), (0.05, 0.25))
