"""What must hold on a GPU: the CPU's figures, a step that never waits for the device, runs that go on from a checkpoint.

pytest -m gpu               # where there is a GPU
DEVICE=cpu pytest -m gpu    # the same code elsewhere, so that it does not rot
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compiled_steps import small
from conftest import make_views, small_config
from test_compile import PASSES
from tiny_runs import checkpoint, config_for, noisy_pictures, records, stop_after
from whole_step import SmallTraining

from glocal.recipes import continue_run
from glocal.schedules import Progress
from glocal.training.gradients import backward
from glocal.training.loop import pretrain
from glocal.training.network import SelfDistillation, StepInput, build_distillation
from glocal.views.augment import augment

pytestmark = pytest.mark.gpu
PROGRESS = Progress(5, 100, 10)


@pytest.fixture
def device() -> torch.device:
    """The GPU; with DEVICE=cpu the CPU."""
    if os.environ.get("DEVICE") == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    return torch.device("cuda")


def small_model(device: torch.device, autocast: torch.dtype | None = None) -> SelfDistillation:
    torch.manual_seed(0)
    model = build_distillation(small_config(), autocast).to(device)
    model.teacher.to(device)
    return model


def test_losses_and_gradients_are_the_cpus(device: torch.device) -> None:
    """In float32 of full precision to 1e-4; in bfloat16 to a few per cent."""
    found = {}
    for place, autocast in ((torch.device("cpu"), None), (device, None), (device, torch.bfloat16)):
        model = small_model(place, autocast)
        scalars = backward(model, StepInput(make_views(8).to(place), PROGRESS, False), 1)
        gradient = model.student.backbone.get_parameter("blocks.0.attn.qkv.weight").grad
        assert gradient is not None
        found[place, autocast] = (scalars["loss"].cpu(), gradient.float().cpu())
    loss, gradient = found[torch.device("cpu"), None]
    torch.testing.assert_close(found[device, None], (loss, gradient), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[device, torch.bfloat16][0], loss, rtol=0.03, atol=0)


def test_views_are_the_cpus(device: torch.device) -> None:
    config, views = small_config(), make_views(4)
    groups = {
        name: type(group)((group.pixels.abs() * 80).clamp(0, 255).byte(), group.box, group.flip, group.strong)
        for name, group in views.groups.items()
    }
    views = replace(views, groups=groups)
    there = augment(views.to(device), config.views, config.backbone.patch_size)
    here = augment(views, config.views, config.backbone.patch_size)
    for name, group in here.groups.items():
        torch.testing.assert_close(there.groups[name].pixels.cpu(), group.pixels, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recipe", PASSES)
def test_a_step_never_waits_for_the_device(device: torch.device, recipe: str) -> None:
    """Everything between two records, told by CUDA itself, after a step that fills caches."""
    config = small(recipe)
    training = SmallTraining(config, device, torch.bfloat16)
    try:
        for number in range(3):
            views = make_views(4, seed=number, groups=config.views)
            if device.type == "cuda":
                views = views.pin_memory().to(device)
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error" if number else "default")
            training.step(augment(views, config.views, config.backbone.patch_size), Progress(number, 3, 1))
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert training.guard.read() == (0, 0)


def test_a_stopped_run_goes_on(device: torch.device, tmp_path: Path) -> None:
    """In bfloat16, with the generator of the device; the records are those of a run that was never stopped, nearly."""
    folder = noisy_pictures(tmp_path / "images")
    more = ("training.steps=6", f"speed.device={device.type}", "speed.precision=bf16")
    whole = pretrain(config_for(folder, tmp_path / "whole", *more))
    stop_after(3)
    try:
        out = pretrain(config_for(folder, tmp_path / "stopped", *more))
    finally:
        stop_after(None)
    assert set(checkpoint(out)["generators"][0]) == {"cpu", device.type}
    pretrain(continue_run(str(out), []), resume=True)
    for before, after in zip(records(whole), records(out), strict=True):
        assert before["step"] == after["step"] and after["loss"] == pytest.approx(before["loss"], rel=0.02)
