"""Heads against NumPy, and the reference's sizes and initial weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from narrowing import of_kind
from scipy.special import erf

from glocal.models.heads import PredictionHead, ProjectionHead, PrototypeHead


def numpy_mlp(head: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    linears = [
        module for module in of_kind(torch.nn.Sequential, head.mlp) if isinstance(module, torch.nn.Linear)
    ]
    for number, linear in enumerate(linears):
        if number:
            x = x * 0.5 * (1 + erf(x / np.sqrt(2)))
        x = x @ linear.weight.detach().double().numpy().T
        if linear.bias is not None:
            x = x + linear.bias.detach().double().numpy()
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


@pytest.mark.parametrize("norm_last_layer", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
def test_prototype_head_equals_numpy(norm_last_layer: bool, layers: int) -> None:
    torch.manual_seed(0)
    head = PrototypeHead(
        12, hidden=20, bottleneck=8, prototypes=30, layers=layers, norm_last_layer=norm_last_layer
    )
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(2, 5, 12)
    expected = numpy_mlp(head, x.double().numpy())
    np.testing.assert_allclose(head.bottleneck(x).detach(), expected, atol=1e-5)
    directions = head.directions.detach().double().numpy()
    prototypes = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    if head.lengths is not None:
        prototypes = prototypes * head.lengths.detach().double().numpy()
    np.testing.assert_allclose(head.prototypes().detach(), prototypes, atol=1e-5)
    np.testing.assert_allclose(head(x).detach(), expected @ prototypes.T, atol=1e-5)
    assert len(list(head.prototype_parameters())) == (1 if norm_last_layer else 2)


def test_prototypes_stay_on_the_sphere_and_learn() -> None:
    head = PrototypeHead(12, hidden=20, bottleneck=8, prototypes=30)
    torch.testing.assert_close(head.prototypes().norm(dim=1), torch.ones(30))
    head(torch.randn(4, 12)).square().sum().backward()
    assert head.directions.grad is not None
    along = (head.directions.grad * head.directions).sum(1)
    torch.testing.assert_close(along, torch.zeros(30), atol=1e-5, rtol=0)
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in head.parameters())


def test_sizes_are_those_of_the_reference() -> None:
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        assert count(PrototypeHead(384, norm_last_layer=False)) == pytest.approx(22.35e6, rel=1e-3)
        assert count(PrototypeHead(384, norm_last_layer=False, prototypes=4096)) == pytest.approx(
            6.56e6, rel=1e-3
        )
        assert count(ProjectionHead(384)) == pytest.approx(5.51e6, rel=1e-3)
        assert count(PredictionHead()) == pytest.approx(2.10e6, rel=2e-3)


def test_contrastive_heads_equal_numpy_and_have_no_biases() -> None:
    torch.manual_seed(0)
    for head, width in ((ProjectionHead(12, hidden=20, out_dim=8), 12), (PredictionHead(8, hidden=16), 8)):
        x = torch.randn(5, width)
        np.testing.assert_allclose(head(x).detach(), numpy_mlp(head, x.double().numpy()), atol=1e-5)
        assert not [name for name, _ in head.named_parameters() if "bias" in name]


def test_initial_weights() -> None:
    head = PrototypeHead(64, hidden=256, bottleneck=64, prototypes=500)
    assert float(head.get_parameter("mlp.0.weight").detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(head.directions.detach().abs().max()) <= 1 / 8
    assert float(head.directions.detach().std()) == pytest.approx(1 / 8 / 3**0.5, rel=0.02)
    # The predictor keeps PyTorch's: uniform in 1/sqrt(fan in).
    assert float(
        PredictionHead(64, hidden=256).get_parameter("mlp.0.weight").detach().std()
    ) == pytest.approx(1 / 8 / 3**0.5, rel=0.05)


def test_unit_length_in_float32_under_autocast() -> None:
    head = PrototypeHead(12, hidden=20, bottleneck=8, prototypes=30)
    with torch.autocast("cpu", torch.bfloat16):
        tokens, prototypes = head.bottleneck(torch.randn(5, 12)), head.prototypes()
    assert tokens.dtype == prototypes.dtype == torch.float32
    torch.testing.assert_close(tokens.norm(dim=1), torch.ones(5))
