"""Label-free figures of two views of the same images, as pure functions; each has a slow NumPy twin in the tests.

What isn't here is in `extraction.embedding_statistics`: effective rank, alignment, uniformity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

HIGH_NORM = 3.0
"""A patch whose norm exceeds this many medians is an artefact (Darcet et al. 2024 draw an absolute line, for one model)."""


def retrieval_accuracy(
    queries: Float[Tensor, "images dim"], gallery: Float[Tensor, "images dim"]
) -> Float[Tensor, ""]:
    """Share of the queries, distorted crops, whose nearest gallery image by cosine is the one they were cut from.

    Query `i` was cut from image `i`. A tie with the right image counts as wrong, so that a constant embedding gets 0.

    >>> float(retrieval_accuracy(torch.eye(3), torch.eye(3)))
    1.0
    """
    cosine = F.normalize(queries.float(), dim=1) @ F.normalize(gallery.float(), dim=1).T
    right = cosine.diagonal()
    others = cosine.masked_fill(torch.eye(len(cosine), dtype=torch.bool, device=cosine.device), -torch.inf)
    return (right > others.amax(1)).double().mean()


def correspondence_accuracy(
    first: Float[Tensor, "images patches dim"],
    second: Float[Tensor, "images patches dim"],
    right: Int64[Tensor, "images patches"],
) -> Float[Tensor, ""]:
    """Share of a view's patches whose most similar patch of the other view shows the same place; the mean over images.

    Args:
        first: patches that are asked about.
        second: patches of the other view of the same images.
        right: for each patch of `first` its patch of `second`, -1 where it has none and isn't counted.

    Departure from the protocol `correspondence`: a tie with the right patch is wrong there by chance and here always.
    """
    cosine = F.normalize(first.float(), dim=-1) @ F.normalize(second.float(), dim=-1).transpose(1, 2)
    asked = right >= 0
    place = right.clamp(min=0)[..., None]
    score = cosine.gather(2, place)[..., 0]
    best_other = cosine.scatter(2, place, -torch.inf).amax(2)
    hit = (score > best_other) & asked
    counted = asked.sum(1)
    share = hit.sum(1).double() / counted.clamp(min=1)
    return share[counted > 0].mean()


def high_norm_share(tokens: Float[Tensor, "images patches dim"]) -> Float[Tensor, ""]:
    """Share of patch tokens whose norm exceeds three times the median norm of all.

    Take tokens before the final norm: it hides what it evens out.
    """
    norms = tokens.float().norm(dim=-1).flatten()
    share: Tensor = (norms > HIGH_NORM * norms.median()).double().mean()
    return share


def position_share(patches: Float[Tensor, "images patches dim"]) -> Float[Tensor, ""]:
    """Share of the patch embeddings' variance that position alone explains, 0..1 (epsilon squared, Kelley 1935).

    The variance between the mean embeddings of the positions, less what chance gives among so many images, over all
    variance. Near 1, a patch says where it is and not what it shows. One image, or no variance: 0.
    """
    x = patches.double()
    images, positions, _ = x.shape
    total = (x - x.mean((0, 1))).square().sum()
    if images < 2 or positions < 2 or float(total) == 0:
        return x.new_zeros(())
    within = (x - x.mean(0, keepdim=True)).square().sum()
    chance = (positions - 1) * within / (positions * (images - 1))
    share: Tensor = ((total - within - chance) / total).clamp(min=0)
    return share
