"""Logistic regression on whitened features has the optimum of scikit-learn, whatever the features' scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from glocal.evaluation.classification.softmax_regression import fit_softmax, whiten_rows


@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("rows", [12, 300])
def test_the_optimum_is_scikit_learns(strength: float, rows: int) -> None:
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(20, 20)) * np.exp(-np.arange(20) / 3)
    x = generator.normal(size=(rows, 20)) @ mixing + 3.0
    y = np.array([2, 5, 7])[(x[:, :3] + 4 * generator.normal(size=(rows, 3))).argmax(1)]
    y[:3] = [2, 5, 7]
    features = torch.from_numpy(x)
    data = whiten_rows(features, torch.from_numpy(y))
    found = fit_softmax(data, strength, tolerance=1e-8, iterations=5000)
    reference = LogisticRegression(C=strength, max_iter=10_000, tol=1e-8, solver="newton-cholesky").fit(x, y)
    assert found.gradient <= 1e-7 and found.classes.tolist() == [2, 5, 7]
    # Weights are free up to a shift of all classes in what isn't penalised, the bias.
    assert np.allclose(found.weight.numpy().T, reference.coef_, atol=2e-4 * np.abs(reference.coef_).max())
    shifted = (found.bias - found.bias.mean()).numpy()
    assert np.allclose(shifted, reference.intercept_ - reference.intercept_.mean(), atol=2e-3)
    assert np.array_equal(found.predict(features).numpy(), reference.predict(x))
    again = fit_softmax(data, strength, tolerance=1e-8, iterations=5000, start=fit_softmax(data, 0.3))
    assert torch.allclose(again.weight, found.weight, atol=1e-5 * float(found.weight.abs().max()))


def test_single_precision_gives_the_same_answers() -> None:
    generator = np.random.default_rng(1)
    x = generator.normal(size=(500, 30)) * np.logspace(0, -3, 30)
    y = (x[:, 0] + 0.3 * generator.normal(size=500) > 0).astype(int)
    features, labels = torch.from_numpy(x), torch.from_numpy(y)
    exact, single = (
        fit_softmax(whiten_rows(features.to(kind), labels), 1.0) for kind in (torch.float64, torch.float32)
    )
    agreeing = (exact.predict(features) == single.predict(features)).double().mean()
    assert single.gradient < 1e-4 and agreeing > 0.995
