"""Exact search by cosine in blocks, and the measures that only need the ranks of the right answers.

Neither the query x database matrix nor an index is ever held: one block of queries meets the whole database, a few
numbers a query are kept. Ties count against the query, so a model that maps all images to one point scores near zero
instead of whatever the order of the files gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from glocal.errors import DataError
from glocal.models.precision import exact_products

# Cosines in float32 are exact to about 1e-7 and depend that much on the shape of the product; closer is a tie.
TIE = 1e-6
_BLOCK_ELEMENTS = 2**25  # scores held at once: 128 MB


def ranks_of_positives(
    queries: Float[Tensor, "queries dim"],
    database: Float[Tensor, "database dim"],
    positives: Sequence[NDArray[np.int64]],
    ignored: Sequence[NDArray[np.int64]] | None = None,
) -> list[NDArray[np.int64]]:
    """Rank every positive of every query in the whole database: 0-based, ascending, exact.

    A positive's rank is the number of negatives whose cosine is at least its own minus 1e-6, plus the number of
    positives before it; `ignored` items (junk) count as absent. So ties go against the query.

    Args:
        queries: descriptors of length 1.
        database: descriptors of length 1.
        positives: for each query the database indices of its right answers, perhaps none.
        ignored: for each query the indices that count neither way.

    Raises:
        DataError: for an index outside the database, one that is positive and ignored at once, or descriptors as in
            `check_descriptors`.

    >>> ranks_of_positives(torch.eye(3)[:1], torch.eye(3), [np.array([1])])[0].tolist()
    [2]
    """
    check_descriptors(queries, database)
    if len(positives) != len(queries) or (ignored is not None and len(ignored) != len(queries)):
        raise DataError(
            f"There are {len(queries)} queries and {len(positives)} lists of positives; give one a query."
        )
    ranks: list[NDArray[np.int64]] = []
    for block in _query_blocks(queries, database):
        with exact_products():
            scores = block @ database.T
        for row in scores:
            query = len(ranks)
            junk = ignored[query] if ignored is not None else np.empty(0, np.int64)
            ranks.append(_ranks_in_row(row, positives[query], junk))
    return ranks


def reranked_ranks(
    queries: Float[Tensor, "queries dim"],
    database: Float[Tensor, "database dim"],
    first: Int64[Tensor, "queries count"],
    scores: Float[Tensor, "queries count"],
    positives: Sequence[NDArray[np.int64]],
    ignored: Sequence[NDArray[np.int64]],
) -> list[NDArray[np.int64]]:
    """Rank every positive when the `first` items of a query are re-ordered by `scores` and stay ahead of the rest.

    Other arguments, ties and errors as for `ranks_of_positives`; with scores in the old order it gives the old ranks.
    """
    lists = first.cpu().numpy()
    later = [np.setdiff1d(right, row) for right, row in zip(positives, lists, strict=True)]
    hidden = [np.union1d(junk, row) for junk, row in zip(ignored, lists, strict=True)]
    behind = ranks_of_positives(queries, database, later, hidden)
    ranks = []
    for row, values, right, junk, rest in zip(lists, scores.cpu(), positives, ignored, behind, strict=True):
        wanted, absent = (np.flatnonzero(np.isin(row, items)) for items in (right, junk))
        ranks.append(np.concatenate([_ranks_in_row(values, wanted, absent), rest + len(row) - len(absent)]))
    return ranks


def trapezoid_average_precision(ranks: NDArray[np.int64], positives: int) -> float:
    """Average precision as the area under the precision-recall curve by the trapezoid rule.

    This is the measure of Holidays, Copydays and (revisited) Oxford/Paris; a single positive at 0-based rank r scores
    1 for r = 0 and 1 / (2 (r + 1)) otherwise. Positives beyond the given ranks add nothing.

    Args:
        ranks: 0-based ranks of the positives that were found, ascending.
        positives: how many there are in all, at least 1.

    >>> trapezoid_average_precision(np.array([1]), 1)
    0.25
    """
    if positives < 1:
        raise DataError(
            "Average precision isn't defined for a query without a positive; leave the query out."
        )
    hits = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, hits / np.maximum(ranks, 1))
    after = (hits + 1) / (ranks + 1)
    return float((before + after).sum() / (2 * positives))


def precision_at(ranks: NDArray[np.int64], count: int) -> float:
    """Precision among the first `count`, or among those up to the last positive when that comes earlier.

    The second part is the revisited protocol's: a query with three positives can reach 1 at count 10.

    >>> precision_at(np.array([0, 1, 5]), 5)
    0.4
    """
    if len(ranks) == 0:
        return 0.0
    depth = min(int(ranks.max()) + 1, count)
    return float((ranks < depth).sum() / depth)


def check_descriptors(queries: Tensor, database: Tensor) -> None:
    """Refuse empty sets, unequal widths and values that aren't finite (a NaN would compare as the best rank)."""
    for name, descriptors in (("queries", queries), ("database", database)):
        if descriptors.dim() != 2 or 0 in descriptors.shape:
            raise DataError(
                f"The {name} have shape {tuple(descriptors.shape)}; (images, dim) is needed, none of it 0."
            )
        if not torch.isfinite(descriptors).all():
            bad = int((~torch.isfinite(descriptors).all(dim=1)).sum())
            raise DataError(
                f"{bad} of {len(descriptors)} descriptors of the {name} aren't finite; check the model."
            )
    if queries.shape[1] != database.shape[1]:
        raise DataError(f"Queries have {queries.shape[1]} dimensions and the database {database.shape[1]}.")


def _query_blocks(queries: Tensor, database: Tensor) -> Sequence[Tensor]:
    return torch.split(queries, max(1, _BLOCK_ELEMENTS // database.shape[0]))


def _ranks_in_row(row: Tensor, positives: NDArray[np.int64], ignored: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ranks of the positives among one query's scores."""
    if len(positives) == 0:
        return np.empty(0, np.int64)
    both = np.concatenate([positives, ignored]).astype(np.int64)
    if both.min() < 0 or both.max() >= len(row):
        raise DataError(
            f"Ground truth names database item {both.max()}; there are {len(row)}, counted from 0."
        )
    if len(np.unique(both)) != len(both):
        raise DataError(
            "Ground truth names a database item twice for one query, or as positive and junk at once."
        )
    right = row[torch.from_numpy(positives.astype(np.int64)).to(row.device)]
    negatives = row.clone()
    negatives[torch.from_numpy(both).to(row.device)] = -torch.inf
    if len(positives) <= 4:
        ahead = torch.stack([(negatives >= score - TIE).sum() for score in right])
    else:
        ascending = negatives.sort().values
        ahead = len(row) - torch.searchsorted(ascending, right - TIE, side="left")
    # Positives don't count against each other: sort by negatives ahead, then each stands behind those before it.
    return np.sort(ahead.cpu().numpy()) + np.arange(len(positives))
