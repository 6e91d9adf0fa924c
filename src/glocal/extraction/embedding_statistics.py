"""What embeddings look like without any label, as pure functions: rank, spread, how alike patches and image are.

`effective_rank` is cheap enough to be watched during training: a fall towards 1 is a collapse that a loss hides.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from glocal.errors import DataError

PAIR_CHUNK = 1024
"""Rows of the distance matrix held at once."""


def effective_rank(embeddings: Float[Tensor, "rows dim"]) -> Float[Tensor, ""]:
    """RankMe (Garrido et al. 2023): exp of the entropy of the normalised singular values, in 1..min(rows, dim).

    Embeddings are taken as they are, not centred, as in the paper, so a constant offset lowers it. Departure: computed
    from eigenvalues of the Gram matrix of the smaller side in float64, where the paper takes an SVD; equal up to
    singular values below 1e-8 of the largest. A matrix of zeros has rank 1.

    >>> round(float(effective_rank(torch.eye(3))), 4)
    3.0
    """
    x = embeddings.detach().double()
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=torch.finfo(x.dtype).tiny)
    rank: Tensor = torch.special.entr(share).sum().exp()
    return rank


def alignment(one: Float[Tensor, "rows dim"], other: Float[Tensor, "rows dim"]) -> Float[Tensor, ""]:
    """Mean squared distance of unit embeddings of two views of an image (Wang and Isola 2020, alpha 2); 0 is best."""
    return (normalize(one.double(), dim=1) - normalize(other.double(), dim=1)).square().sum(1).mean()


def uniformity(embeddings: Float[Tensor, "rows dim"]) -> Float[Tensor, ""]:
    """Log of the mean of exp(-2 |x - y|^2) over pairs of rows (Wang and Isola 2020, t = 2); lower is more spread.

    0 when all embeddings agree, about -4 when spread evenly over a sphere of many dimensions.

    Raises:
        DataError: for fewer than two rows.
    """
    rows = len(embeddings)
    if rows < 2:
        raise DataError(f"Uniformity compares images with each other and needs 2 or more; got {rows}.")
    x = normalize(embeddings.double(), dim=1)
    # A row against itself adds exp(0) = 1, taken off again. The sum needs no log-sum-exp: its terms are in [e^-8, 1].
    total = sum((4 * (chunk @ x.T) - 4).clamp(max=0).exp().sum() for chunk in torch.split(x, PAIR_CHUNK))
    return ((torch.as_tensor(total) - rows) / (rows * (rows - 1))).clamp(min=torch.finfo(x.dtype).tiny).log()


def dimension_std(embeddings: Float[Tensor, "rows dim"]) -> Float[Tensor, " dim"]:
    """Deviation of each dimension of unit embeddings, times sqrt(dim): about 1 when spread evenly, 0 when collapsed."""
    x = normalize(embeddings.double(), dim=1)
    spread: Tensor = x.std(0, correction=0) * x.shape[1] ** 0.5
    return spread


def patch_class_similarity(
    patches: Float[Tensor, "images patches dim"], cls: Float[Tensor, "images dim"]
) -> Float[Tensor, " images"]:
    """Mean cosine between an image's patches and its class embedding. Near 1, patches have lost their place."""
    return cosine_similarity(patches, cls[:, None], dim=2).mean(1)


def patch_similarity(patches: Float[Tensor, "images patches dim"]) -> Float[Tensor, " images"]:
    """Mean cosine between different patches of an image; near 1 all patches agree. 1 for a single patch."""
    unit = normalize(patches, dim=2)
    count = unit.shape[1]
    if count == 1:
        return unit.new_ones(len(unit))
    trace = unit.square().sum((1, 2))
    return (unit.sum(1).square().sum(1) - trace) / (count * (count - 1))
