"""Compute as the unit: FLOPs of a step against a hand count, ways to say how long, and runs that keep to a time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import SMALL_HEAD, small_config
from lightning_fabric import Fabric

from glocal.data import open_source
from glocal.errors import ConfigError, TrainingError
from glocal.models.backbone import BackboneConfig
from glocal.objectives import ContrastConfig, ImageLevelConfig
from glocal.recipes import configure, continue_run
from glocal.training import precision
from glocal.training.compute import Clock, StepCost, number_of_steps
from glocal.training.config import OptimiserConfig, RunConfig, TrainingConfig
from glocal.training.loop import pretrain
from glocal.training.precision import choose_precision
from glocal.training.trial import TrialStep
from glocal.views.groups import ViewGroup

FAST = [
    "backbone.embed_dim=32", "backbone.depth=1", "backbone.num_heads=2", "training.batch_size=8",
    "training.log_every=5", "probe.enabled=false", "verdict.enabled=false", "speed.workers=0", "speed.precision=fp32",
]  # fmt: skip


def trial_of(**update: object) -> TrialStep:
    """A step of 8 digits: 2 views of 16 patches for both networks, 3 of 4 for the student; a 32-wide, 2-deep ViT."""
    config = small_config(training=TrainingConfig(batch_size=8), **update)
    return TrialStep(config, open_source("digits"), Fabric(accelerator="cpu", devices=1))


# ------------------------------------------------------------------------------------------------------ the count


def backbone_products(views: int, patches: int, kept: int) -> tuple[int, int]:
    """Multiplications and additions of one forward pass over some views: of the patch embedding, and of the rest."""
    dim, depth, tokens = 32, 2, kept + 1
    block = tokens * 12 * dim * dim + 2 * tokens * tokens * dim
    return 2 * views * patches * (3 * 8 * 8) * dim, 2 * views * depth * block


def test_a_step_of_dino_equals_the_hand_count() -> None:
    """Forward 1, backward 2, but 1 for the patch embedding, whose pixels need no gradient; the teacher forward only."""
    objectives = {"image": ImageLevelConfig(head=SMALL_HEAD)}
    counted = trial_of(objectives=objectives).flops()
    large, small = 8 * 2, 8 * 3
    expected = 0
    for views, patches, passes in ((large, 16, 4), (small, 4, 3)):
        embed, rest = backbone_products(views, patches, patches)
        expected += (passes - 1) * embed + passes * rest
    # The position table, shrunk from 4x4 to 2x2 for the small views, and its gradient: two products each.
    expected += 2 * 2 * (2 * 4 * 4 * 32 + 2 * 2 * 4 * 32)
    head = 2 * (32 * 32 + 32 * 16)
    expected += (3 * (large + small) + large) * head
    # Streamed loss: three products a student token and three a teacher token; the centre one matrix-vector product.
    prototypes = 2 * 16 * 24
    expected += 3 * (large + small) * prototypes + 3 * large * prototypes + prototypes
    assert counted == expected


def test_half_of_the_patches_cost_the_student_half() -> None:
    group = ViewGroup(count=2, size=32, area=(0.4, 1.0))
    contrast = {"image": ContrastConfig()}
    whole, half = (
        trial_of(
            views={"global": group.model_copy(update={"keep_patches": share})}, objectives=contrast
        ).flops()
        for share in (1.0, 0.5)
    )
    embed, rest = backbone_products(16, 16, 16)
    fewer, less = backbone_products(16, 8, 8)
    assert whole - half == pytest.approx(2 * (embed - fewer) + 3 * (rest - less), rel=1e-6)


def test_muon_counts_its_newton_schulz_steps() -> None:
    objectives = {"image": ImageLevelConfig(head=SMALL_HEAD)}
    plain, muon = (
        trial_of(objectives=objectives, optimiser=OptimiserConfig(kind=kind)).flops()
        for kind in ("adamw", "muon")
    )

    def newton_schulz(rows: int, columns: int) -> int:
        return 5 * 2 * (2 * rows * rows * columns + rows**3)

    block = 4 * newton_schulz(32, 32) + 2 * newton_schulz(32, 128)
    assert muon - plain == 2 * block + newton_schulz(32, 32) + newton_schulz(16, 32)


def test_micro_batches_count_what_they_repeat() -> None:
    objectives = {"image": ContrastConfig()}
    one, two = (
        TrialStep(
            small_config(training=TrainingConfig(batch_size=8, accumulate=n), objectives=objectives),
            open_source("digits"), Fabric(accelerator="cpu", devices=1),
        ).flops()
        for n in (1, 2)
    )  # fmt: skip
    assert 1.2 < two / one < 1.4


def test_attention_too_long_to_be_written_out_is_counted() -> None:
    backbone = BackboneConfig(size="micro", embed_dim=8, depth=1, num_heads=2, patch_size=1, image_size=26)
    views = {"global": ViewGroup(count=2, size=26, area=(0.4, 1.0))}
    trial = TrialStep(
        small_config(
            backbone=backbone, views=views, objectives={"image": ContrastConfig()}, training=TrainingConfig(batch_size=2)
        ),
        open_source("digits"), Fabric(accelerator="cpu", devices=1),
    )  # fmt: skip
    attention = 2 * 2 * (4 * 677 * 677 * 8)
    assert trial.flops() > 3 * attention


# -------------------------------------------------------------------------------------------------------- how long


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"epochs": 2.5}, 25), ({"epochs": 2.5, "steps": 7}, 7), ({"images": 1000}, 10), ({"flops": 5.9e6}, 5),
        ({"minutes": 0.5}, 15),
    ],
)  # fmt: skip
def test_ways_to_say_how_long(given: dict[str, float], steps: int) -> None:
    training = TrainingConfig.model_validate({"batch_size": 100, **given})
    assert number_of_steps(training, 1000, StepCost(flops=1e6, seconds=2.0)) == steps


def test_two_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match="flops and minutes both say how long"):
        configure("dino", data="digits", out="x", overrides=["training.flops=1e15", "training.minutes=3"])


def test_a_budget_below_one_step_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"training.flops=1e\+03 is less than one step takes \(1e\+06\)"):
        number_of_steps(TrainingConfig(flops=1e3), 1000, StepCost(1e6))


class Time:
    """A clock that moves when told, in place of `time.perf_counter`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("glocal.training.compute.time.perf_counter", lambda: self.now)


def test_steps_follow_the_time_when_the_pace_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    clock = Clock(limit=60.0)
    time.now += 5.0  # opening the data
    step, planned, shares = 0, 1000, []
    while step < planned:
        planned = clock.steps(step, planned)
        if step > 2:
            shares.append((step / planned, clock.used() / 60.0))
        time.now += (1.0 if step == 0 else 0.1) * (2.0 if clock.used() > 30 else 1.0)
        step += 1
    assert clock.used() == pytest.approx(60.0, abs=0.3)
    assert step == planned and 350 < step < 450
    assert all(0 <= at <= 1 for at, _ in shares)
    # The second half goes at half the pace, which nothing foretold: no farther off than that explains.
    assert max(abs(at - spent) for at, spent in shares) < 0.2
    assert shares[-1][0] > 0.99


def test_a_run_that_was_put_back_is_not_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    clock = Clock(limit=60.0)
    planned = 100
    for step in (0, 1, 2, 3, 1, 0, 1, 2):
        planned = clock.steps(step, planned)
        time.now += 1.0
    assert 40 < planned < 60


def test_a_run_of_some_minutes_ends_in_time_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look at the clock takes a hundredth of a second."""
    time = Time(monkeypatch)

    def tick() -> float:
        time.now += 0.01
        return time.now

    monkeypatch.setattr("glocal.training.compute.time.perf_counter", tick)
    more = ["training.minutes=0.01", "optimiser.final_learning_rate=0"]
    more += ["probe.enabled=true", "probe.bank=40", "probe.queries=20"]
    out = pretrain(
        configure("dino", data="digits", out=str(tmp_path), preset="cifar", overrides=[*FAST, *more])
    )
    summary = json.loads((out / "summary.json").read_text())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in lines if "loss" in record]
    probes = [line["step"] for line in lines if "loss" not in line]
    assert probes[0] == 0 and probes[-1] == summary["steps"] and len(probes) >= 3
    assert summary["seconds"] == pytest.approx(0.6, abs=0.2)
    assert records[-1]["step"] == summary["steps"] == summary["steps_planned"]
    assert records[-1]["learning_rate"] < 2e-4 < max(r["learning_rate"] for r in records)
    assert torch.load(out / "checkpoints" / "last.pt", weights_only=True)["seconds"] == summary["seconds"]
    pretrain(continue_run(str(out), []), resume=True)
    again = json.loads((out / "summary.json").read_text())
    assert again["steps"] <= summary["steps"] + 1


def test_records_and_summary_say_what_was_used(tmp_path: Path) -> None:
    out = pretrain(
        configure(
            "dino", data="digits", out=str(tmp_path), preset="cifar", overrides=[*FAST, "training.images=80"]
        )
    )
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    summary = json.loads((out / "summary.json").read_text())
    assert last["images"] == summary["images"] == 80
    assert last["flops"] == summary["flops"] == 10 * summary["flops_per_step"] > 0


# ------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("native", "fp32", "bf16", "chosen", "reason"),
    [
        (False, 1.0, 0.1, "fp32", "no bfloat16 instructions"),
        (True, 1.6, 1.0, "bf16", "1.60 times as fast"),
        (True, 1.0, 1.0, "fp32", "1.00 times as fast"),
    ],
)
def test_auto_takes_what_is_native_and_faster(
    monkeypatch: pytest.MonkeyPatch, native: bool, fp32: float, bf16: float, chosen: str, reason: str
) -> None:
    monkeypatch.setattr(precision, "has_native_bfloat16", lambda _: native)
    monkeypatch.setattr(precision, "_seconds_by_precision", lambda _: {"fp32": fp32, "bf16": bf16})
    choice = choose_precision("auto", trial_of())
    assert choice.name == chosen and reason in choice.reason


def test_measuring_times_both_precisions() -> None:
    seconds = precision._seconds_by_precision(trial_of(objectives={"image": ContrastConfig()}))
    assert set(seconds) == {"fp32", "bf16"} and all(0 < s < math.inf for s in seconds.values())


def test_a_continued_run_keeps_the_precision_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_native_bfloat16", lambda _: True)
    monkeypatch.setattr(precision, "_seconds_by_precision", lambda _: {"fp32": 2.0, "bf16": 1.0})
    fast = [w for w in FAST if "precision" not in w]
    config = configure(
        "dino", data="digits", out=str(tmp_path), preset="cifar", overrides=[*fast, "training.steps=2"]
    )
    assert config.speed.precision == "auto"
    pretrain(config)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["precision"], "2.00 times" in summary["precision_reason"]) == ("bf16", True)
    assert continue_run(str(tmp_path), []).speed.precision == "bf16"


def test_auto_is_the_default() -> None:
    assert RunConfig.model_fields["speed"].default.precision == "auto"
