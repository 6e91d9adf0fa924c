"""The moving average against a loop."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from glocal.errors import ModelError
from glocal.models.teacher import MovingAverage, freeze


def network(predictor: bool) -> nn.ModuleDict:
    parts: dict[str, nn.Module] = {"body": nn.Linear(5, 7), "norm": nn.LayerNorm(7)}
    return nn.ModuleDict(parts | ({"predictor": nn.Linear(7, 3)} if predictor else {}))


def test_it_equals_the_loop_over_names() -> None:
    torch.manual_seed(0)
    student, teacher = network(predictor=True), network(predictor=False)
    expected = {name: p.detach().double().numpy().copy() for name, p in teacher.named_parameters()}
    average = MovingAverage(teacher, student)
    for momentum in (0.9, 0.5, 0.996):
        average.update(momentum)
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if name in expected:
                    value = parameter.double().numpy()
                    expected[name] = momentum * expected[name] + (1 - momentum) * value
                parameter.add_(torch.randn_like(parameter))
    for name, parameter in teacher.named_parameters():
        np.testing.assert_allclose(parameter.detach(), expected[name], atol=1e-6)


def test_momentum_zero_gives_the_student_and_one_leaves_the_teacher() -> None:
    student, teacher = network(True), network(False)
    before = {name: p.detach().clone() for name, p in teacher.named_parameters()}
    MovingAverage(teacher, student).update(1.0)
    assert all(torch.equal(p, before[name]) for name, p in teacher.named_parameters())
    MovingAverage(teacher, student).update(0.0)
    assert all(torch.equal(p, student.get_parameter(name)) for name, p in teacher.named_parameters())


def test_a_teacher_needs_no_gradient_and_leaves_the_student_alone() -> None:
    student = network(True).train()
    teacher = freeze(copy.deepcopy(student))
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training
    assert all(p.requires_grad for p in student.parameters()) and student.training
    before = [p.detach().clone() for p in student.parameters()]
    for parameter in teacher.parameters():
        parameter.add_(1.0)
    MovingAverage(teacher, student).update(0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


def test_wrapped_students_are_matched() -> None:
    student = network(True)
    wrapped = nn.Module()
    wrapped.module = student
    teacher = freeze(network(False))
    MovingAverage(teacher, wrapped).update(0.0)
    torch.testing.assert_close(teacher.get_parameter("body.weight"), student.get_parameter("body.weight"))


def test_what_cannot_follow_is_named() -> None:
    with pytest.raises(
        ModelError, match=r"predictor.weight \(3, 7\) can't follow the student, which has none"
    ):
        MovingAverage(network(True), network(False))
    teacher = nn.ModuleDict({"body": nn.Linear(5, 8)})
    with pytest.raises(ModelError, match=r"body.weight \(8, 5\).*shape \(7, 5\)"):
        MovingAverage(teacher, network(False))
