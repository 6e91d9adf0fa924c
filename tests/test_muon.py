"""Muon: one update against a slow NumPy twin, who is moved by what, and its state."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_views, small_config

from glocal.schedules import Progress, Schedule
from glocal.training import muon
from glocal.training.config import OptimiserConfig
from glocal.training.muon import MuonWithAdamW, orthogonalise
from glocal.training.network import StepInput, build_distillation
from glocal.training.optimiser import build_optimiser, clip_gradients, set_schedules

PROGRESS = Progress(step=5, total_steps=10, steps_per_epoch=10)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newton-Schulz in float32, whatever the processor."""
    monkeypatch.setattr(muon, "has_native_bfloat16", lambda _: False)


def slow_orthogonal(matrix: np.ndarray) -> np.ndarray:
    """The odd quintic applied five times to the singular values: no matrix iteration at all."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.sqrt((values**2).sum())
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return np.asarray((left * values) @ right)


def slow_update(
    weight: np.ndarray, momentum: np.ndarray, gradient: np.ndarray, rate: float, decay: float, matrices: int
) -> np.ndarray:
    """One step on a parameter of stacked matrices, in float64."""
    momentum = 0.95 * momentum + 0.05 * gradient
    direction = 0.95 * momentum + 0.05 * gradient
    for part in np.split(np.arange(len(weight)), matrices):
        rows, columns = weight[part].shape
        scale = rate * np.sqrt(max(1.0, rows / columns))
        weight[part] = weight[part] * (1 - rate * decay) - scale * slow_orthogonal(direction[part])
    return momentum


@pytest.mark.parametrize(("shape", "matrices"), [((6, 9), 1), ((9, 6), 1), ((18, 6), 3), ((6, 9), 2)])
def test_three_updates_equal_the_slow_twin(exact: None, shape: tuple[int, int], matrices: int) -> None:
    generator = np.random.default_rng(0)
    weight, momentum = generator.normal(size=shape), np.zeros(shape)
    parameter = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float32))
    optimiser = MuonWithAdamW(
        [{"params": [parameter], "matrices": matrices}], lr=0.02, weight_decay=0.1, fused=True
    )
    for _ in range(3):
        gradient = generator.normal(size=shape)
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimiser.step()
        momentum = slow_update(weight, momentum, gradient, 0.02, 0.1, matrices)
    np.testing.assert_allclose(parameter.detach().numpy(), weight, atol=2e-5)


def test_bfloat16_brings_singular_values_near_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "has_native_bfloat16", lambda _: True)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(4, 16, 48)))
    assert values.min() > 0.6 and values.max() < 1.3


def test_matrices_of_blocks_and_heads_only() -> None:
    model = build_distillation(small_config())
    optimiser = build_optimiser(model, 2, OptimiserConfig(kind="muon"))
    names = {id(p): n.removeprefix("student.") for n, p in model.named_parameters()}
    count = {names[id(p)]: g["matrices"] for g in optimiser.param_groups for p in g["params"]}
    assert count["backbone.blocks.0.attn.qkv.weight"] == 3
    assert count["backbone.blocks.1.mlp.fc1.weight"] == count["heads.image.mlp.0.weight"] == 1
    others = ("backbone.patch_embed.proj.weight", "backbone.pos_embed", "backbone.cls_token")
    assert all(count[n] == 0 for n in (*others, "heads.image.directions", "backbone.blocks.0.attn.qkv.bias"))


def test_muon_follows_the_course_of_the_other_rate() -> None:
    config = OptimiserConfig(kind="muon", muon_learning_rate=0.01)
    optimiser = build_optimiser(build_distillation(small_config()), 2, config)
    set_schedules(optimiser, config, Schedule(start=2e-3, end=0.0), PROGRESS)
    assert {(g["matrices"] > 0, round(g["lr"], 9)) for g in optimiser.param_groups} == {
        (True, 0.005),
        (False, 0.001),
    }


def test_state_round_trips_and_the_next_update_is_equal(tmp_path: Path) -> None:
    config = OptimiserConfig(kind="muon")
    models = [build_distillation(small_config()) for _ in range(2)]
    optimisers = [build_optimiser(model, 2, config) for model in models]

    def train(number: int, seed: int) -> None:
        models[number](StepInput(make_views(4, seed=seed), PROGRESS, False))[0].backward()
        clip_gradients(list(models[number].parameters()), config, PROGRESS)
        optimisers[number].step()
        optimisers[number].zero_grad()

    train(0, 1)
    torch.save(optimisers[0].state_dict(), tmp_path / "state.pt")
    models[1].load_state_dict(copy.deepcopy(models[0].state_dict()))
    optimisers[1].load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for number in (0, 1):
        models[number].teacher.load_state_dict(models[0].teacher.state_dict())
        train(number, 2)
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b), name
