"""A loss or gradient that is no number: the step is left out bit for bit, counted, and a row of them answered."""

from __future__ import annotations

import copy
import json
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_views
from test_objectives import PROGRESS, TERMS, build
from tiny_runs import checkpoint, config_for, noisy_pictures, records

from glocal.errors import TrainingError
from glocal.recipes import continue_run
from glocal.training import loop
from glocal.training.bad_steps import StepGuard
from glocal.training.config import OptimiserConfig
from glocal.training.gradients import backward
from glocal.training.loop import pretrain
from glocal.training.network import SelfDistillation, StepInput
from glocal.training.optimiser import build_optimiser, clip_gradients, learning_rate_schedule, set_schedules
from glocal.views import augment as augmentation
from glocal.views.batch import Views


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_pictures(tmp_path_factory.mktemp("images"))


def take_step(
    model: SelfDistillation,
    optimiser: torch.optim.Optimizer,
    config: OptimiserConfig,
    guard: StepGuard,
    views: Views,
) -> torch.Tensor:
    """One step as the loop takes it."""
    set_schedules(optimiser, config, learning_rate_schedule(config, 8), PROGRESS)
    guard.begin()
    loss = backward(model, StepInput(views, PROGRESS, watch=False))["loss"]
    norm = clip_gradients(model.student.parameters(), config, PROGRESS)
    bad = guard.judge(loss, norm, optimiser)
    model.finish_step()
    guard.keep(bad)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return bad


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize(
    "name", ["image", "patch-sinkhorn", "instance-full", "group-local", "neighbours-attention"]
)
def test_a_bad_step_changes_nothing_bit_for_bit(name: str, kind: str) -> None:
    model, config = build(name), OptimiserConfig(kind=kind)
    optimiser = build_optimiser(model, 2, config)
    guard = StepGuard(model.objectives)
    assert not take_step(model, optimiser, config, guard, make_views(6, seed=1))
    before = copy.deepcopy([model.student.state_dict(), optimiser.state_dict()["state"]])
    buffers = [buffer.clone() for buffer in model.objectives.buffers()]
    views = make_views(6, seed=2)
    poisoned = views.groups["global"].pixels.clone()
    poisoned[0, 0, 0, 3, 3] = float("nan")
    group = views.groups["global"]
    views = replace(
        views, groups=views.groups | {"global": type(group)(poisoned, group.box, group.flip, group.strong)}
    )
    assert take_step(model, optimiser, config, guard, views)
    after = [model.student.state_dict(), optimiser.state_dict()["state"]]
    assert all(torch.equal(before[0][key], value) for key, value in after[0].items())
    for parameter, state in after[1].items():
        assert all(torch.equal(before[1][parameter][key], value) for key, value in state.items()), parameter
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.objectives.buffers(), strict=True))
    assert not take_step(model, optimiser, config, guard, make_views(6, seed=3))
    assert guard.read() == (1, 1) and guard.read() == (0, 0)


def test_the_suite_knows_every_kind_of_state() -> None:
    """Terms with a centre, with queues and with memories are among those above."""
    assert {"image", "patch-sinkhorn", "instance-full", "group-local", "neighbours-attention"} <= set(TERMS)


def poison(monkeypatch: pytest.MonkeyPatch, steps: Container[int]) -> None:
    """Make the pixels of these steps (numbered as they are taken) no numbers."""
    original, count = augmentation.augment, {"step": 0}

    def augment(*arguments: Any) -> Views:
        views = original(*arguments)
        count["step"] += 1
        if count["step"] in steps:
            for group in views.groups.values():
                group.pixels.fill_(float("nan"))
        return views

    monkeypatch.setattr(loop, "augment", augment)


def test_a_run_goes_on_after_a_bad_step_and_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, {3})
    out = pretrain(config_for(folder, tmp_path / "run", "training.steps=8"))
    kept = records(out)
    assert [r.get("skipped_steps", 0) for r in kept] == [0, 1, 0, 0]
    # The record's losses are means over its good step; what is as of the step is that step's.
    assert all(r["loss"] > 0 for r in kept)
    assert "1 step(s) up to step 4 were left out" in capsys.readouterr().err
    assert all(t.isfinite().all() for t in checkpoint(out)["student"].values())


def test_bad_steps_in_a_row_go_back_to_the_last_checkpoint_at_half_the_rate(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, range(5, 11))
    out = pretrain(config_for(folder, tmp_path / "run", "training.steps=12", "training.checkpoint_every=4"))
    assert "back at step 4, with the learning rate at 0.5" in " ".join(capsys.readouterr().err.split())
    history = [json.loads(line) for line in (out / "resumes.jsonl").read_text().splitlines()]
    assert [(h["step"], "bad steps in a row up to step 10" in h["why"]) for h in history] == [(4, True)]
    assert [r["step"] for r in records(out)] == [2, 4, 6, 8, 10, 12]
    state = checkpoint(out)
    assert state["step"] == 12 and state["retreats"] == 1
    assert all(t.isfinite().all() for t in state["student"].values())
    # A rate that a person sets counts as it is.
    pretrain(continue_run(str(out), ["optimiser.learning_rate=1e-4"]), resume=True)
    history = [json.loads(line) for line in (out / "resumes.jsonl").read_text().splitlines()]
    assert list(history[-1]["changed"]) == ["optimiser.learning_rate"]


def test_a_retreat_is_resumed_bit_for_bit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a checkpoint the run begins again; the lower rate goes along into the next checkpoint."""
    more = ["training.steps=10", "training.checkpoint_every=100"]
    poison(monkeypatch, range(2, 9))
    out = pretrain(config_for(folder, tmp_path / "run", *more))
    assert [r["step"] for r in records(out)] == [2, 4, 6, 8, 10]
    assert checkpoint(out)["retreats"] == 1
    assert json.loads((out / "resumes.jsonl").read_text())["step"] == 0
    rates = [r["learning_rate"] for r in records(out)]
    monkeypatch.undo()
    plain = pretrain(config_for(folder, tmp_path / "plain", *more))
    assert rates == [r["learning_rate"] / 2 for r in records(plain)]


def test_a_run_that_never_gets_better_ends_with_a_diagnosis(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(5, 1000))
    config = config_for(
        folder, tmp_path / "run", "training.steps=30", "training.checkpoint_every=4", "optimiser.clip=null"
    )
    with pytest.raises(TrainingError, match=r"0.125 of its schedule.*clip=null.*resume=true") as stopped:
        pretrain(config)
    assert "last checkpoint stands" in str(stopped.value)
    state = checkpoint(tmp_path / "run")
    assert state["step"] == 4 and all(t.isfinite().all() for t in state["student"].values())
