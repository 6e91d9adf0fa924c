"""How differently two networks relate the same patches to each other, or to others. Pure functions, in float32."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from glocal.models.heads import unit_length


def centred_kernel_alignment(
    x: Float[Tensor, "sets patches dim"],
    y: Float[Tensor, "sets patches dim"],
    exists: Bool[Tensor, "sets patches"],
) -> Float[Tensor, " sets"]:
    """Linear CKA of every set: <HKH, HLH> / (|HKH| |HLH|) with K = x x^T, L = y y^T, H the centring (Kornblith et al.
    2019). 1 when both lie alike up to rotation and scale; 0 for sets without spread.

    >>> x, every = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    >>> bool((centred_kernel_alignment(x, 3 * x, every) > 0.999).all())
    True
    """
    gram_x, gram_y = (_gram(_centred(z, exists)) for z in (x, y))
    lengths = gram_x.square().sum(dim=(1, 2)) * gram_y.square().sum(dim=(1, 2))
    return (gram_x * gram_y).sum(dim=(1, 2)) / lengths.clamp_min(1e-24).sqrt()


def gram_difference(
    x: Float[Tensor, "sets patches dim"],
    y: Float[Tensor, "sets patches dim"],
    exists: Bool[Tensor, "sets patches"],
) -> Float[Tensor, " sets"]:
    """Mean squared difference of the cosine similarities between a set's patches, over all pairs of its patches."""
    gram_x, gram_y = (_gram(unit_length(z) * exists[..., None]) for z in (x, y))
    pairs = exists.sum(dim=1).square().clamp_min(1)
    return (gram_x - gram_y).square().sum(dim=(1, 2)) / pairs


def order_difference(
    x: Float[Tensor, "sets patches dim"],
    y: Float[Tensor, "sets patches dim"],
    exists: Bool[Tensor, "sets patches"],
    references: Float[Tensor, "references dim"],
    own_image: Bool[Tensor, "sets references"],
    temperature_x: float,
    temperature_y: float,
) -> Float[Tensor, " sets"]:
    """Mean over a set's patches of the cross-entropy from y's softmax over similarities to references to x's.

    `references` are unit vectors; those of the set's `own_image` are left out.
    """
    hidden = own_image[:, None, :]
    logits = (unit_length(x) @ references.T / temperature_x).masked_fill(hidden, -1e30)
    target = (unit_length(y) @ references.T / temperature_y).masked_fill(hidden, -1e30).softmax(dim=-1)
    terms = -(target * logits.log_softmax(dim=-1)).sum(dim=-1)
    return (terms * exists).sum(dim=1) / exists.sum(dim=1).clamp_min(1)


def _gram(x: Float[Tensor, "sets patches dim"]) -> Float[Tensor, "sets patches patches"]:
    return x @ x.transpose(1, 2)


def _centred(
    x: Float[Tensor, "sets patches dim"], exists: Bool[Tensor, "sets patches"]
) -> Float[Tensor, "sets patches dim"]:
    """The set's mean taken off, what does not exist zero."""
    there = exists[..., None]
    mean = (x * there).sum(dim=1, keepdim=True) / there.sum(dim=1, keepdim=True).clamp_min(1)
    return (x - mean) * there
