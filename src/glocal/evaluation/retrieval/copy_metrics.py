"""Measures of copy detection over one ranking of all (query, reference) pairs, as in ISC/DISC21 (Douze et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from glocal.errors import DataError


def micro_average_precision(scores: NDArray[np.floating], is_match: NDArray[np.bool_], matches: int) -> float:
    """Average precision of all predicted pairs in one ranking over all queries, those without a copy included.

    uAP = sum_i precision(i) * (recall(i) - recall(i-1)), over distinct scores: pairs of equal score enter together, as
    in scikit-learn, so their order can't matter. Matches that weren't predicted stay in the denominator.

    Args:
        scores: one confidence a predicted pair.
        is_match: whether the pair is in the ground truth.
        matches: how many pairs the ground truth has.

    Raises:
        DataError: for no ground-truth pair, more matches predicted than there are, unequal lengths or a NaN.

    >>> micro_average_precision(np.array([0.9, 0.8]), np.array([False, True]), 1)
    0.5
    """
    precision, recall = precision_recall(scores, is_match, matches)
    return float((precision * np.diff(recall, prepend=0.0)).sum())


def recall_at_precision(
    scores: NDArray[np.floating], is_match: NDArray[np.bool_], matches: int, precision: float = 0.9
) -> float:
    """Highest recall over all thresholds at which at least `precision` of the accepted pairs are right; 0 if none.

    >>> recall_at_precision(np.array([0.9, 0.8]), np.array([True, False]), 2)
    0.5
    """
    precisions, recalls = precision_recall(scores, is_match, matches)
    # 0.9 of 10 pairs is 9, which division may put an ulp below.
    return float(recalls[precisions >= precision - 1e-12].max(initial=0.0))


def precision_recall(
    scores: NDArray[np.floating], is_match: NDArray[np.bool_], matches: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall at every distinct score as threshold, from the highest score down."""
    scores, is_match = np.asarray(scores).ravel(), np.asarray(is_match, dtype=bool).ravel()
    if matches < 1:
        raise DataError("The ground truth has no matching pair; micro-AP needs at least one.")
    if scores.shape != is_match.shape:
        raise DataError(
            f"There are {scores.size} scores and {is_match.size} verdicts; give one verdict a score."
        )
    if np.isnan(scores).any():
        raise DataError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN; check the model.")
    if is_match.sum() > matches:
        raise DataError(
            f"{int(is_match.sum())} predicted pairs are right, of {matches} in all: is a pair in twice?"
        )
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(is_match[order])
    ranked = scores[order]
    threshold = (
        np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if ranked.size else np.empty(0, np.int64)
    )
    return right[threshold] / (threshold + 1), right[threshold] / matches


def recall_at(ranks: Sequence[NDArray[np.int64]], count: int = 1) -> float:
    """Share of the queries that have a positive among their first `count` database items.

    Args:
        ranks: 0-based ranks of each query's positives; pass only queries that have one.
        count: how deep to look.
    """
    if not ranks:
        raise DataError("No query has a reference; recall needs at least one.")
    return float(np.mean([len(r) > 0 and int(r.min()) < count for r in ranks]))
