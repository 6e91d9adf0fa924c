"""Logistic regression on whitened features has the optimum of scikit-learn, whatever the features' scale."""

from __future__ import annotations

import numpy as np
import pytest
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
    found = fit_softmax(whiten_rows(x, y), strength, tolerance=1e-8, iterations=5000)
    reference = LogisticRegression(C=strength, max_iter=10_000, tol=1e-8, solver="newton-cholesky").fit(x, y)
    assert found.gradient <= 1e-7 and found.classes.tolist() == [2, 5, 7]
    # Weights are free up to a shift of all classes in what isn't penalised, the bias.
    assert np.allclose(found.weight.T, reference.coef_, atol=2e-4 * np.abs(reference.coef_).max())
    shifted = found.bias - found.bias.mean()
    assert np.allclose(shifted, reference.intercept_ - reference.intercept_.mean(), atol=2e-3)
    assert np.array_equal(found.predict(x), reference.predict(x))


def test_single_precision_gives_the_same_answers() -> None:
    generator = np.random.default_rng(1)
    x = generator.normal(size=(500, 30)) * np.logspace(0, -3, 30)
    y = (x[:, 0] + 0.3 * generator.normal(size=500) > 0).astype(int)
    exact, single = (fit_softmax(whiten_rows(x.astype(kind), y), 1.0) for kind in (np.float64, np.float32))
    assert single.gradient < 1e-4 and (exact.predict(x) == single.predict(x)).mean() > 0.995
