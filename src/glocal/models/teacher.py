"""The teacher: a copy of the student that follows it as an exponential moving average."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from glocal.errors import ModelError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def freeze(module: ModuleT) -> ModuleT:
    """Switch a module to eval mode and its parameters to no gradient; returns it."""
    return module.requires_grad_(False).eval()


class MovingAverage:
    """Moves every parameter of the teacher towards the student's of the same name.

    The teacher may lack parameters of the student (a predictor), never the other way round. Parameters are matched
    once, here, so a step is one fused operation over the list; the modules' parameters must not be replaced afterwards.

    Raises:
        ModelError: when a teacher's parameter has no counterpart of the same shape.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        named = {_plain_name(name): parameter for name, parameter in student.named_parameters()}
        self._teacher: list[Tensor] = []
        self._student: list[Tensor] = []
        for name, parameter in teacher.named_parameters():
            other = named.get(_plain_name(name))
            if other is None or other.shape != parameter.shape:
                seen = "has none of that name" if other is None else f"has shape {tuple(other.shape)}"
                raise ModelError(
                    f"The teacher's parameter {name} {tuple(parameter.shape)} can't follow the student, which {seen}. "
                    "Build both networks from one configuration."
                )
            if other is not parameter:  # frozen weights are one tensor in both (see `adaptation.adapt`)
                self._teacher.append(parameter)
                self._student.append(other)

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Move: teacher = momentum * teacher + (1 - momentum) * student."""
        if self._teacher:
            torch._foreach_lerp_(self._teacher, self._student, 1.0 - momentum)


def _plain_name(name: str) -> str:
    """A parameter's name without what data-parallel, compile and checkpoint wrappers add."""
    for wrapper in ("module.", "_orig_mod.", "_forward_module.", "_checkpoint_wrapped_module."):
        name = name.replace(wrapper, "")
    return name
