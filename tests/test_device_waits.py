"""Nothing in a step waits for the device: no number, list or truth is read from a tensor that would lie there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest
import torch
from compiled_steps import small
from conftest import make_views
from test_compile import PASSES

from glocal.models.teacher import MovingAverage
from glocal.schedules import Progress
from glocal.training.bad_steps import StepGuard
from glocal.training.gradients import backward
from glocal.training.network import StepInput, build_distillation
from glocal.training.optimiser import build_optimiser, clip_gradients
from glocal.views.augment import augment

_READ: set[Any] = {
    torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__,
    torch.Tensor.__index__, torch.Tensor.nonzero, torch.nonzero, torch.Tensor.cpu, torch.Tensor.numpy, torch.unique,
    torch.Tensor.masked_select, torch.masked_select, torch.bincount, torch.equal, torch.allclose,
}  # fmt: skip


class OnDevice(torch.Tensor):
    """A tensor of the CPU that stands for one on a GPU; whatever is computed from it is one, too."""

    waits: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        masked = func is torch.Tensor.__getitem__ and any(
            isinstance(index, OnDevice) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], tuple) else (args[1],))
        )
        if func in _READ or masked:
            cls.waits.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(OnDevice)


@pytest.fixture(autouse=True)
def _no_waits_yet() -> None:
    OnDevice.waits = []


@pytest.mark.parametrize("read", [float, bool, torch.Tensor.tolist, torch.nonzero, lambda x: x[x > 0]])
def test_a_wait_is_seen(read: Callable[[torch.Tensor], object]) -> None:
    read(on_device(torch.ones(1)) * 2)
    assert OnDevice.waits


@pytest.mark.parametrize("recipe", PASSES)
def test_no_part_of_a_step_waits(recipe: str) -> None:
    """Losses and gradients, clipping, the judgement of bad steps, optimiser and average, watched and unwatched."""
    config = small(recipe)
    model = build_distillation(config, torch.bfloat16)
    optimiser, guard = build_optimiser(model, 2, config.optimiser), StepGuard(model.objectives)
    average = MovingAverage(model.teacher, model.student)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for number in range(2):
        views = make_views(4, seed=number, groups=config.views)
        groups = {
            name: type(g)(on_device(g.pixels), g.box, g.flip, g.strong) for name, g in views.groups.items()
        }
        progress = Progress(number, 2, 1)
        guard.begin()
        scalars = backward(model, StepInput(views.with_groups(groups), progress, watch=bool(number)))
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = on_device(parameter.grad)
        norm = clip_gradients(parameters, config.optimiser, progress)
        bad = guard.judge(scalars["loss"], norm, optimiser)
        model.finish_step()
        guard.keep(bad)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        average.update(0.99)
        assert isinstance(scalars["loss"], OnDevice)
    assert OnDevice.waits == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("recipe", PASSES)
def test_no_part_of_a_step_waits_on_a_gpu(recipe: str) -> None:
    """The same, told by CUDA itself; the first step may wait, since it fills caches."""
    device, config = torch.device("cuda"), small(recipe)
    model = build_distillation(config, torch.bfloat16).to(device)
    model.teacher.to(device)
    optimiser, guard = build_optimiser(model, 2, config.optimiser), StepGuard(model.objectives).to(device)
    average = MovingAverage(model.teacher, model.student)
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        for number in range(3):
            loaded = make_views(4, seed=number, groups=config.views).pin_memory().to(device)
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error" if number else "default")
            views = augment(loaded, config.views, config.backbone.patch_size)
            guard.begin()
            scalars = backward(model, StepInput(views, Progress(number, 3, 1), watch=False))
            norm = clip_gradients(parameters, config.optimiser, Progress(number, 3, 1))
            bad = guard.judge(scalars["loss"], norm, optimiser)
            model.finish_step()
            guard.keep(bad)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            average.update(0.99)
    finally:
        torch.cuda.set_sync_debug_mode("default")
