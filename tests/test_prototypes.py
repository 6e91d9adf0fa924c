"""The streamed prototype cross-entropy and Sinkhorn-Knopp against slow NumPy versions."""

import math

import numpy as np
import pytest
import torch
from narrowing import present
from torch.nn import functional as F

from glocal.objectives.over_prototypes import cross_entropy as module
from glocal.objectives.over_prototypes.cross_entropy import (
    Prototypes,
    prototype_cross_entropy,
    sinkhorn_centre,
    target_statistics,
)
from glocal.objectives.over_prototypes.prototype_term import CentringConfig, TeacherCentre
from glocal.objectives.view_pairs import Pairs


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def slow_cross_entropy(
    x_s: np.ndarray,
    w_s: np.ndarray,
    t_s: float,
    x_t: np.ndarray,
    w_t: np.ndarray,
    t_t: float,
    centre: np.ndarray,
    pairs: Pairs,
) -> float:
    """One pair at a time, in float64."""
    total = 0.0
    for s, t, weight in zip(*(p.numpy() for p in pairs), strict=True):
        p = softmax((w_t @ x_t[t] - centre[t]) / t_t)
        q = softmax(w_s @ x_s[s] / t_s)
        total += weight * -(p * np.log(q)).sum()
    return float(total)


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Pairs]:
    torch.manual_seed(0)
    x_s, x_t = F.normalize(torch.randn(37, 8), dim=1), F.normalize(torch.randn(23, 8), dim=1)
    w_s, w_t = F.normalize(torch.randn(50, 8), dim=1), F.normalize(torch.randn(50, 8), dim=1) * 1.3
    centre = 0.1 * torch.randn(50)
    pairs = Pairs(torch.randint(37, (60,)), torch.randint(23, (60,)), torch.rand(60))
    return x_s.requires_grad_(), w_s.requires_grad_(), x_t, w_t, centre, pairs


def naive(
    x_s: torch.Tensor,
    w_s: torch.Tensor,
    x_t: torch.Tensor,
    w_t: torch.Tensor,
    centre: torch.Tensor,
    pairs: Pairs,
) -> torch.Tensor:
    p = ((x_t @ w_t.T - centre) / 0.05).softmax(1)
    q = (x_s @ w_s.T / 0.1).log_softmax(1)
    return -(pairs.weight * (p[pairs.teacher] * q[pairs.student]).sum(1)).sum()


@pytest.mark.parametrize("elements", [16 * 50, 2**21])
def test_value_equals_one_pair_at_a_time(
    problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Pairs],
    monkeypatch: pytest.MonkeyPatch,
    elements: int,
) -> None:
    monkeypatch.setitem(module._CHUNK_ELEMENTS, "cpu", elements)
    x_s, w_s, x_t, w_t, centre, pairs = problem
    loss = prototype_cross_entropy(Prototypes(x_s, w_s, 0.1), Prototypes(x_t, w_t, 0.05), centre, pairs)
    arrays = [t.detach().double().numpy() for t in (x_s, w_s, x_t, w_t, centre)]
    table = np.broadcast_to(arrays[4], (23, 50))
    expected = slow_cross_entropy(arrays[0], arrays[1], 0.1, arrays[2], arrays[3], 0.05, table, pairs)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("elements", [16 * 50, 2**21])
def test_gradients_equal_autograd_of_the_naive_form(
    problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Pairs],
    monkeypatch: pytest.MonkeyPatch,
    elements: int,
) -> None:
    monkeypatch.setitem(module._CHUNK_ELEMENTS, "cpu", elements)
    x_s, w_s, x_t, w_t, centre, pairs = problem
    loss = prototype_cross_entropy(Prototypes(x_s, w_s, 0.1), Prototypes(x_t, w_t, 0.05), centre, pairs)
    ours = torch.autograd.grad(3.0 * loss, (x_s, w_s))
    expected = torch.autograd.grad(3.0 * naive(*problem), (x_s, w_s))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_each_position_takes_its_own_centre(
    problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Pairs],
) -> None:
    x_s, w_s, x_t, w_t, _, pairs = problem
    table, position = 0.2 * torch.randn(4, 50), torch.randint(4, (23,))
    loss = prototype_cross_entropy(
        Prototypes(x_s, w_s, 0.1), Prototypes(x_t, w_t, 0.05), table, pairs, position
    )
    arrays = [t.detach().double().numpy() for t in (x_s, w_s, x_t, w_t, table[position])]
    expected = slow_cross_entropy(arrays[0], arrays[1], 0.1, arrays[2], arrays[3], 0.05, arrays[4], pairs)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_no_pairs_give_zero_loss_and_zero_gradients(
    problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Pairs],
) -> None:
    x_s, w_s, x_t, w_t, centre, _ = problem
    none = Pairs(torch.zeros(0).long(), torch.zeros(0).long(), torch.zeros(0))
    loss = prototype_cross_entropy(Prototypes(x_s, w_s, 0.1), Prototypes(x_t, w_t, 0.05), centre, none)
    loss.backward()
    assert loss.item() == 0.0
    assert not present(x_s.grad).any() and not present(w_s.grad).any()


def test_no_tokens_at_all(
    problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Pairs],
) -> None:
    _, w_s, _, w_t, centre, _ = problem
    empty = torch.zeros(0, 8, requires_grad=True)
    none = Pairs(torch.zeros(0).long(), torch.zeros(0).long(), torch.zeros(0))
    loss = prototype_cross_entropy(
        Prototypes(empty, w_s, 0.1), Prototypes(torch.zeros(0, 8), w_t, 0.05), centre, none
    )
    loss.backward()
    assert loss.item() == 0.0


def test_bfloat16_is_close(
    problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Pairs],
) -> None:
    x_s, w_s, x_t, w_t, centre, pairs = problem
    exact = prototype_cross_entropy(Prototypes(x_s, w_s, 0.1), Prototypes(x_t, w_t, 0.05), centre, pairs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = prototype_cross_entropy(Prototypes(x_s, w_s, 0.1), Prototypes(x_t, w_t, 0.05), centre, pairs)
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=2e-2)


def slow_sinkhorn(logits: np.ndarray, temperature: float, iterations: int) -> np.ndarray:
    """DINOv2's procedure on the whole matrix."""
    q = np.exp(logits / temperature).T
    q /= q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True) * k
        q /= q.sum(axis=0, keepdims=True) * b
    return np.asarray((q * b).T)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("elements", [16 * 50, 2**21])
def test_sinkhorn_centre_equals_the_full_matrix(
    problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Pairs],
    monkeypatch: pytest.MonkeyPatch,
    iterations: int,
    elements: int,
) -> None:
    monkeypatch.setitem(module._CHUNK_ELEMENTS, "cpu", elements)
    _, _, x_t, w_t, _, _ = problem
    centre = sinkhorn_centre(Prototypes(x_t, w_t, 0.07), iterations)
    ours = ((x_t @ w_t.T - centre) / 0.07).softmax(1).numpy()
    expected = slow_sinkhorn((x_t.double() @ w_t.double().T).numpy(), 0.07, iterations)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def test_statistics_equal_their_definition(
    problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Pairs],
) -> None:
    _, _, x_t, w_t, centre, _ = problem
    entropy, marginal = target_statistics(Prototypes(x_t, w_t, 0.05), centre)
    p = softmax((x_t @ w_t.T - centre).double().numpy() / 0.05)
    assert entropy.item() == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=1e-4)
    np.testing.assert_allclose(marginal.numpy(), p.mean(0), rtol=1e-4, atol=1e-7)
    assert 0 < entropy.item() < math.log(50)


def test_statistics_are_float32_under_autocast(
    problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Pairs],
) -> None:
    """Sinkhorn's scaling, the centre's mean logits and the watched entropies, bit for bit."""
    _, _, x_t, w_t, centre, _ = problem
    teacher = Prototypes(x_t, w_t, 0.05)

    def figures() -> list[torch.Tensor]:
        moving = TeacherCentre(50, CentringConfig())
        moving.for_targets(teacher)
        return [sinkhorn_centre(teacher), moving.seen_sum, *target_statistics(teacher, centre)]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = figures()
    for ours, expected in zip(under_autocast, figures(), strict=True):
        assert torch.equal(ours, expected)
