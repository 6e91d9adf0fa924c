"""Patches of two images that choose each other: what re-ranking counts and pictures of matches show."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor


class MutualPatches(NamedTuple):
    """Pairs of patches that are each other's nearest, the most alike first."""

    first: Int64[Tensor, " pairs"]
    second: Int64[Tensor, " pairs"]
    cosine: Float[Tensor, " pairs"]


def mutual_patches(
    first: Float[Tensor, "first_patches dim"], second: Float[Tensor, "second_patches dim"]
) -> MutualPatches:
    """Pairs of patches of two images that choose each other by cosine; both sides have length 1.

    Mutual choice is what makes a match specific: sky matches any sky patch, but is chosen back by one only. Equal
    choices fall to the first.

    >>> mutual_patches(torch.eye(3), torch.eye(3).flip(0)).second.tolist()
    [2, 1, 0]
    """
    cosine = first @ second.T
    best, chosen = cosine.max(dim=1)
    mutual = cosine.argmax(dim=0)[chosen] == torch.arange(len(first), device=first.device)
    order = best.argsort(descending=True, stable=True)
    kept = order[mutual[order]]
    return MutualPatches(kept, chosen[kept], best[kept])


def mutual_match_score(
    query: Float[Tensor, "query_patches dim"], candidate: Float[Tensor, "candidate_patches dim"]
) -> Float[Tensor, ""]:
    """Say how much of the query is found in the candidate: in -1..1, 1 for an image and itself.

    A query patch counts with its cosine to its nearest candidate patch when the two choose each other, else with 0; the
    mean is over the query's patches.

    >>> float(mutual_match_score(torch.eye(3), torch.eye(3).flip(0)))
    1.0
    """
    return mutual_patches(query, candidate).cosine.sum() / len(query)
