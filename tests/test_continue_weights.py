"""Continuing from weights: when the trunk opens, what the guard says and hands over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import glocal
from glocal.recipes import configure
from glocal.training.guard import conclude
from glocal.training.heads_first import opened_at, trunk_share
from glocal.training.loop import pretrain
from glocal.training.weights import views_at
from glocal.views.groups import ViewGroup


def test_the_trunk_opens_when_the_loss_has_settled() -> None:
    falling = [(step, 10.0 - step / 20) for step in range(5, 105, 5)]
    assert opened_at(falling, steps=1000) == 100
    settled = [(5, 8.0), (10, 6.0), (15, 5.5), (20, 5.49), (25, 5.48)]
    assert opened_at(settled, steps=1000) == 25
    assert opened_at(settled, steps=150) == 15
    assert opened_at([], steps=30) == 3


def test_the_trunks_rate_rises_after_it_opens() -> None:
    losses = [(5, 8.0), (10, 6.0), (15, 5.5), (20, 5.49), (25, 5.48)]
    assert trunk_share(losses, 24, steps=1000) == 0.0
    assert trunk_share(losses, 25, steps=1000) == pytest.approx(1 / 25)
    assert trunk_share(losses, 49, steps=1000) == 1.0


def test_a_shut_trunk_does_not_move(tmp_path: Path) -> None:
    """The first step's update leaves the backbone bit for bit and moves the heads."""
    run = [
        "training.steps=20",
        "training.batch_size=16",
        "verdict.enabled=false",
        "probe.enabled=false",
        "speed.workers=0",
    ]
    start = pretrain(
        configure("simclr", data="digits", out=str(tmp_path / "a"), preset="cifar", overrides=run)
    )
    going = configure(
        "continue", data="digits", out=str(tmp_path / "b"), preset="cifar", init=str(start),
        overrides=[*run, "training.steps=1", "speed.precision=fp32"],
    )  # fmt: skip
    assert going.training.heads_first
    before, after = glocal.load(start), glocal.load(pretrain(going))
    for name, weight in before.backbone.state_dict().items():
        assert torch.equal(weight, after.backbone.state_dict()[name]), name


def test_views_take_the_weights_side_in_whole_patches() -> None:
    groups = {
        "global": ViewGroup(count=2, size=64, area=(0.2, 1.0)),
        "local": ViewGroup(count=4, size=32, area=(0.1, 0.3)),
    }
    sizes = {name: group.height_width for name, group in views_at(groups, 224, 14).items()}
    assert sizes == {"global": (224, 224), "local": (112, 112)}


def lay_out(folder: Path, last: float, best: float, best_step: int) -> tuple[Path, Path]:
    """A run's records and exports: 40 points untouched, `best` at one step, `last` at the end."""
    rows = [(0, 40.0), (50, best), (100, last)]
    metrics, export = folder / "metrics.jsonl", folder / "export"
    metrics.write_text("".join(json.dumps({"step": s, "verdict.score": v}) + "\n" for s, v in rows))
    for place, step in ((export, 100), (export / "best", best_step)):
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps({"glocal": {"extra": {"step": step}}}))
        (place / "model.safetensors").write_bytes(str(step).encode())
    return metrics, export


def test_a_better_model_is_left_in_place(tmp_path: Path) -> None:
    metrics, export = lay_out(tmp_path, last=45.0, best=44.0, best_step=100)
    assert conclude(metrics, export).startswith("Continuing helped: verdict.score 40.0 untouched, 45.0")
    assert (export / "model.safetensors").read_bytes() == b"100"
    assert not (export / "last").exists()


def test_a_worse_model_is_not_handed_over(tmp_path: Path) -> None:
    metrics, export = lay_out(tmp_path, last=30.0, best=38.0, best_step=0)
    text = conclude(metrics, export)
    assert "made it worse" in text
    assert "step 0 (untouched)" in text
    assert (export / "model.safetensors").read_bytes() == b"0"
    assert (export / "last" / "model.safetensors").read_bytes() == b"100"


def test_equal_within_a_point_changes_little(tmp_path: Path) -> None:
    metrics, export = lay_out(tmp_path, last=39.5, best=40.5, best_step=50)
    assert conclude(metrics, export).startswith("Continuing changed little")


def test_labels_count_as_well(tmp_path: Path) -> None:
    metrics, export = lay_out(tmp_path, last=45.0, best=46.0, best_step=50)
    rows = [{"step": 0, "k20_top1": 60.0}, {"step": 100, "k20_top1": 50.0}]
    metrics.write_text(metrics.read_text() + "".join(json.dumps(row) + "\n" for row in rows))
    assert "made it worse" in conclude(metrics, export)
    assert (export / "model.safetensors").read_bytes() == b"50"


def test_without_figures_nothing_is_claimed(tmp_path: Path) -> None:
    metrics, export = lay_out(tmp_path, last=45.0, best=46.0, best_step=50)
    metrics.write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    assert "not known" in conclude(metrics, export)
