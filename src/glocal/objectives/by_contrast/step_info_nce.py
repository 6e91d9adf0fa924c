"""InfoNCE among the embeddings of one step: no queue, so gradients reach both sides."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

# Stands for "no negative". Finite, because the logsumexp of nothing but minus infinities has no gradient.
_FAR_BELOW = -1e30


def step_info_nce(
    logits: Float[Tensor, "*chunks anchors keys"],
    no_negative: Bool[Tensor, "*#chunks anchors keys"],
    positive: Float[Tensor, "*chunks anchors positives"],
) -> Float[Tensor, "*chunks anchors positives"]:
    """InfoNCE of every anchor with each of its positives, told from its negatives only.

    With n the logsumexp of an anchor's logits over its negatives, a positive's term is

        -log( exp(p) / (exp(p) + exp(n)) )  =  softplus(n - p),

    so one pass over the keys serves all positives of an anchor, and they don't stand in each other's denominators. An
    anchor without any negative costs 0 and has no gradient. Logits are float32, divided by the temperature.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 1.0, -1.0]])
    >>> step_info_nce(logits, torch.tensor([[True, False, False]]), logits[:, :1]).item()
    0.34901225566864014
    """
    negatives = logits.masked_fill(no_negative, _FAR_BELOW).logsumexp(dim=-1, keepdim=True)
    return F.softplus(negatives - positive)


def is_nearest(
    logits: Float[Tensor, "*chunks anchors keys"],
    no_negative: Bool[Tensor, "*#chunks anchors keys"],
    positive: Float[Tensor, "*chunks anchors positives"],
) -> Bool[Tensor, "*chunks anchors positives"]:
    """Which positives are more alike their anchor than all of its negatives: what the loss works towards."""
    return positive > logits.masked_fill(no_negative, _FAR_BELOW).amax(dim=-1, keepdim=True)
