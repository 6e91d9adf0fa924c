"""Runs that grow: views that begin small, blocks that join later, several crops of an image; their cost and their resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import small_config
from lightning_fabric import Fabric
from tiny_runs import config_for, noisy_pictures, records, stop_after, weights

from glocal.data import open_source
from glocal.errors import ConfigError
from glocal.models.backbone import BackboneConfig
from glocal.models.vit import VisionTransformer
from glocal.recipes import configure, continue_run
from glocal.schedules import Progress, Schedule
from glocal.training.compute import StepCost, number_of_steps
from glocal.training.config import RunConfig, TrainingConfig
from glocal.training.growth import GrowingCost, Stage, stage_at, start_late_blocks
from glocal.training.loop import pretrain
from glocal.training.network import build_distillation
from glocal.training.trial import TrialStep
from glocal.views.groups import ViewGroup
from glocal.views.loader import make_loader
from glocal.views.resizing import resized

LINEAR = Schedule(start=8, end=32, shape="linear")
SIZES = "views.global.size={start: 8, end: 16, shape: linear}"
BLOCKS = "training.blocks={start: 1, end: 2, shape: linear}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_pictures(tmp_path_factory.mktemp("pictures"))


def growing_config(**training: object) -> RunConfig:
    views = {"global": ViewGroup(count=2, size=LINEAR, area=(0.4, 1.0))}
    return small_config(views=views, training=TrainingConfig(batch_size=8, **training))


def test_sizes_go_up_in_whole_patches_and_end_at_the_schedules_end() -> None:
    config = growing_config()
    assert config.backbone.patch_size == 8
    sides = [stage_at(config, Progress(step, 12, 4)).sizes[0][0] for step in range(13)]
    assert sides == [round((8 + 24 * step / 12) / 8) * 8 for step in range(13)]
    assert config.views["global"].height_width == (32, 32), "what is cropped, kept in memory and evaluated at"


def test_views_are_resized_and_keep_their_boxes() -> None:
    groups = {
        "a": ViewGroup(count=2, size=32, area=(0.4, 1.0)),
        "b": ViewGroup(count=1, size=16, area=(0.4, 1.0)),
    }
    loader = make_loader(open_source("digits"), groups, batch_size=4, seed=0, workers=0, total_steps=1)
    views = next(iter(loader)).views
    small = resized(views, {"a": (8, 8), "b": (16, 16)})
    expected = F.interpolate(
        views.groups["a"].pixels.flatten(0, 1), size=(8, 8), mode="bicubic", antialias=True
    )
    assert torch.equal(small.groups["a"].pixels.flatten(0, 1), expected)
    assert small.groups["b"] is views.groups["b"] and torch.equal(
        small.groups["a"].box, views.groups["a"].box
    )


def test_blocks_that_join_later_begin_as_the_identity() -> None:
    config = small_config(
        backbone=BackboneConfig(
            size="micro",
            embed_dim=32,
            depth=3,
            num_heads=2,
            patch_size=8,
            image_size=32,
            attention_init="mimetic",
        ),
        training=TrainingConfig(batch_size=8, blocks=Schedule(start=1, end=3, shape="linear")),
    )
    model = build_distillation(config)
    start_late_blocks(model, config)
    pixels = torch.randn(2, 3, 32, 32)
    for network in (model.student, model.teacher):
        backbone = network.backbone
        assert isinstance(backbone, VisionTransformer)
        whole = backbone(pixels)
        backbone.running = 1
        assert torch.equal(backbone(pixels).patches, whole.patches)
        backbone.running = 0
        assert not torch.equal(backbone(pixels).patches, whole.patches)
    assert [stage_at(config, Progress(step, 8, 4)).blocks for step in (0, 3, 6, 8)] == [1, 2, 2, 3]


@pytest.mark.parametrize("budget", [50.0, 777.0, 12_345.0])
def test_a_budget_buys_the_most_steps_that_fit(budget: float) -> None:
    """Against trying all numbers of steps."""
    config = growing_config(flops=budget)

    def cost_of(stage: Stage) -> float:
        return float(stage.sizes[0][0])

    def total(steps: int) -> float:
        return sum(cost_of(stage_at(config, Progress(step, steps, 4))) for step in range(steps))

    cost = StepCost(32.0, growing=GrowingCost(config, cost_of))
    steps = number_of_steps(config.training, 32, cost)
    assert total(steps) <= budget
    assert total(steps) > budget - 2 * 32
    used = cost.so_far(Progress(steps // 2, steps, 4), 8)
    assert used["flops"] == sum(cost_of(stage_at(config, Progress(s, steps, 4))) for s in range(steps // 2))


def test_small_views_and_few_blocks_cost_less() -> None:
    config = growing_config()
    trial = TrialStep(config, open_source("digits"), Fabric(accelerator="cpu", devices=1))
    counted = trial.flops()
    whole, small, shallow = (
        trial.flops(Stage(((side, side),), blocks)) for side, blocks in ((32, 2), (16, 2), (32, 1))
    )
    assert counted == whole and small < 0.4 * whole and shallow < 0.8 * whole


@pytest.mark.parametrize(
    ("recipe", "more"),
    [("dino", []), ("local-global", ["backbone.patch_size=4", "objectives.patch.head.hidden=32"])],
)
def test_a_growing_run_resumed_equals_an_uninterrupted_one(
    folder: Path, tmp_path: Path, recipe: str, more: list[str]
) -> None:
    """Stopped while views are small and the second block has not joined; the cost recorded is that of its stages."""
    words = [SIZES, BLOCKS, "training.steps=12", *more]
    config = config_for(folder, tmp_path / "whole", *words, recipe=recipe)
    whole = pretrain(config)
    stop_after(4)
    try:
        parts = pretrain(config_for(folder, tmp_path / "parts", *words, recipe=recipe))
    finally:
        stop_after(None)
    pretrain(continue_run(str(parts), [], recipe), resume=True)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(parts)[name]), name
    assert records(whole)[-1]["flops"] == records(parts)[-1]["flops"]
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["flops"] == records(whole)[-1]["flops"] < 0.9 * 12 * summary["flops_per_step"]
    moved = [
        name for name, tensor in weights(whole).items() if name.startswith("backbone.blocks.1.attn.proj")
    ]
    assert moved and all(weights(whole)[name].abs().sum() > 0 for name in moved), "the late block learns"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([SIZES, "training.minutes=3"], "by the clock"),
        (["training.blocks={start: 1, end: 3}"], "end at the backbone's depth, 2"),
        (["training.blocks={start: 0, end: 2}"], "start within 1 to 2"),
        (["views.global.size={start: 8, end: 20}"], "which patches of 8 do not divide"),
        (["views.global.count=3"], "which 3 views can't share evenly"),
    ],
)
def test_what_cannot_grow_is_refused(folder: Path, tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config_for(folder, tmp_path / "x", *words)


def test_centres_a_position_refuse_views_that_grow(folder: Path, tmp_path: Path) -> None:
    config = configure(
        "local-global-reference",
        data=str(folder),
        out=str(tmp_path),
        overrides=["views.global.size={start: 96, end: 224}"],
    )
    with pytest.raises(ConfigError, match="have no common positions"):
        build_distillation(config)


def test_several_crops_of_one_decoded_image(folder: Path, tmp_path: Path) -> None:
    """Four views take the two pipelines in turn."""
    out = pretrain(
        config_for(folder, tmp_path / "x", "views.global.count=4", "training.steps=2", recipe="dino")
    )
    assert all(record["loss"] > 0 for record in records(out) if "loss" in record)
