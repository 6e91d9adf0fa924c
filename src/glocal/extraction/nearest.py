"""Exact search: the nearest rows of a bank, in blocks, so that the whole matrix of similarities is never held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from glocal.errors import ConfigError, DataError
from glocal.extraction.feature_matrix import at_least_float32, release
from glocal.models.precision import exact_products

Distance = Literal["cosine", "L2"]

QUERY_CHUNK = 512
BANK_CHUNK = 65_536
"""Similarities held at once: 512 x 65,536 floats, 128 MiB. Constants, so that rounding never depends on the caller."""
BLOCK = 16
"""Columns a block of `largest`; 8 to 32 are equally fast."""


class Neighbours(NamedTuple):
    """The nearest bank rows of some queries, nearest first."""

    similarity: Float[Tensor, "queries k"]
    rows: Int64[Tensor, "queries k"]


def nearest(
    queries: Float[Tensor, "queries dim"],
    bank: Float[Tensor, "rows dim"],
    k: int,
    distance: Distance = "cosine",
    leave_one_out: bool = False,
) -> Neighbours:
    """The k nearest bank rows of every query (all rows when there are fewer).

    Products are exact float32 on any device. Ties at the k-th place fall to either.

    Args:
        queries: for `cosine` already of unit length, as is `bank`.
        bank: the rows to look up.
        k: how many, 1 or more.
        distance: `cosine` gives dot products, `L2` the negative squared distances up to a constant of the query.
        leave_one_out: query i is bank row i and never its own neighbour.

    Raises:
        ConfigError: for a k below 1.
        DataError: for an empty bank, or rows of another width.

    >>> nearest(torch.eye(3)[:1], torch.eye(3), 1).rows.tolist()
    [[0]]
    """
    if k < 1:
        raise ConfigError(f"The number of neighbours is {k}; ask for 1 or more.")
    if len(bank) == 0 or queries.shape[1] != bank.shape[1]:
        raise DataError(
            f"Rows of {queries.shape[1]} values can't be looked up among {len(bank)} rows of {bank.shape[1]}."
        )
    chunks = list(nearest_chunks(queries, bank, k, distance, leave_one_out))
    if not chunks:
        empty = queries.new_empty(0, min(k, len(bank)))
        return Neighbours(empty, empty.long())
    return Neighbours(torch.cat([c.similarity for c in chunks]), torch.cat([c.rows for c in chunks]))


def nearest_chunks(
    queries: Float[Tensor, "queries dim"],
    bank: Float[Tensor, "rows dim"],
    k: int,
    distance: Distance = "cosine",
    leave_one_out: bool = False,
) -> Iterator[Neighbours]:
    """`nearest`, a chunk of 512 queries at a time."""
    for start in range(0, len(queries), QUERY_CHUNK):
        chunk = at_least_float32(queries[start : start + QUERY_CHUNK])
        best: Neighbours | None = None
        for first in range(0, len(bank), BANK_CHUNK):
            rows = bank[first : first + BANK_CHUNK]
            block = at_least_float32(rows)
            with exact_products():
                similarity = chunk @ block.T
            if distance == "L2":
                similarity.mul_(2).sub_(block.square().sum(1))
            if leave_one_out:
                itself = torch.arange(start, start + len(chunk), device=bank.device) - first
                inside = (itself >= 0) & (itself < len(block))
                similarity[inside.nonzero()[:, 0], itself[inside]] = -torch.inf
            release(rows)
            top = largest(similarity, min(k, len(block)))
            best = merge(best, Neighbours(top.similarity, top.rows + first), k)
        if best is not None:
            yield best


def largest(values: Float[Tensor, "queries rows"], k: int) -> Neighbours:
    """The k largest of each row of a wide matrix and their columns, largest first; equal to `topk` but for ties.

    On a CPU, topk keeps a heap, and a bank sorted by class makes it up to ten times slower. Here columns are dealt to
    blocks; the k blocks with the largest maxima hold the k largest values, since each block beaten by k others is
    beaten by k values. Two selections among a sixteenth of the columns remain.
    """
    queries, columns = values.shape
    blocks = columns // BLOCK
    if values.device.type != "cpu" or blocks < 2 * k:
        top = values.topk(k, dim=1)
        return Neighbours(top.values, top.indices)
    dealt = values[:, : blocks * BLOCK].view(queries, BLOCK, blocks)
    near = dealt.amax(1).topk(k, dim=1, sorted=False).indices[:, None, :].expand(-1, BLOCK, -1)
    places = (near + blocks * torch.arange(BLOCK)[:, None]).flatten(1)
    rest = torch.arange(blocks * BLOCK, columns).expand(queries, -1)
    candidates = torch.cat([dealt.gather(2, near).flatten(1), values[:, blocks * BLOCK :]], dim=1)
    top = candidates.topk(k, dim=1)
    return Neighbours(top.values, torch.cat([places, rest], dim=1).gather(1, top.indices))


def merge(one: Neighbours | None, other: Neighbours, k: int) -> Neighbours:
    """The k nearest of two answers to the same queries."""
    if one is None:
        return other
    similarity = torch.cat([one.similarity, other.similarity], dim=1)
    top = similarity.topk(min(k, similarity.shape[1]), dim=1)
    return Neighbours(top.values, torch.cat([one.rows, other.rows], dim=1).gather(1, top.indices))
