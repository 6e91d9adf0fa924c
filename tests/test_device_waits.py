"""Nothing in a step waits for the device: no number, list or truth is read from a tensor that would lie there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from compiled_steps import small
from conftest import make_views
from test_compile import PASSES
from torch import nn
from whole_step import SmallTraining

from glocal.schedules import Progress

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


def gradients_on_device(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = on_device(parameter.grad)


@pytest.mark.parametrize("recipe", PASSES)
def test_no_part_of_a_step_waits(recipe: str) -> None:
    """Watched and unwatched; `test_gpu` asks CUDA itself."""
    config = small(recipe)
    training = SmallTraining(config, torch.device("cpu"), torch.bfloat16)
    for number in range(2):
        views = make_views(4, seed=number, groups=config.views)
        groups = {
            name: type(g)(on_device(g.pixels), g.box, g.flip, g.strong) for name, g in views.groups.items()
        }
        scalars = training.step(
            replace(views, groups=groups), Progress(number, 2, 1), bool(number), gradients_on_device
        )
        assert isinstance(scalars["loss"], OnDevice)
    assert OnDevice.waits == []
