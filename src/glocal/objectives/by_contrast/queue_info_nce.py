"""InfoNCE against a queue of keys (MoCo; Zhou et al. 2022, Mugs), without ever holding all logits.

Notation: x_s is a student's prediction, k_t a teacher's key, q_j the queue's keys, all unit vectors, T the temperature.
For a pair (s, t) the term is

    -log( exp(<x_s, k_t>/T) / (exp(<x_s, k_t>/T) + sum_j exp(<x_s, q_j>/T)) )  =  softplus(n_s - <x_s, k_t>/T)
    with  n_s = logsumexp_j <x_s, q_j>/T,

so the normaliser over the negatives is the student's alone and serves all its teachers: a student view costs one pass
over the queue, whatever the number of pairs. With r = weight x sigmoid(n_s - <x_s, k_t>/T), the gradient to x_s is
(sum of r) x (the queue's mean under the softmax) - sum of r k_t, all over T. It is known once the queue has passed by,
so the forward pass computes it and the backward pass only scales it. The queue passes in chunks, with a running shift
as in online softmax, and is widened from its storage type a chunk at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from glocal.objectives.view_pairs import Pairs

# Elements of one chunk of logits (see prototypes.py): cache-sized on a CPU, large enough to fill a GPU.
_CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}
_FAR_BELOW = -1e30


class Queue(NamedTuple):
    """Keys to be told apart from, in any floating type, and the image each one shows (-1: none)."""

    keys: Float[Tensor, "negatives dim"]
    image: Int64[Tensor, " negatives"]


def info_nce(
    student: Float[Tensor, "students dim"],
    teacher: Float[Tensor, "teachers dim"],
    queue: Queue,
    pairs: Pairs,
    temperature: float,
    exclude: Int64[Tensor, " students"] | None = None,
) -> Float[Tensor, ""]:
    """Sum over pairs of weight x InfoNCE of the student's vector, its teacher's key and the queue as negatives.

    Only the student's vectors get a gradient. With `exclude`, keys of that image are no negatives for the student: a
    queue that spans more than an epoch holds an image's own keys. An empty queue leaves nothing to be told apart from:
    loss and gradient are then exactly 0, as happens once, in a run's first step.

    Cost: 2 products of (students x dim x negatives).

    >>> x, k = (torch.nn.functional.normalize(torch.randn(4, 8), dim=1) for _ in range(2))
    >>> queue = Queue(torch.nn.functional.normalize(torch.randn(16, 8), dim=1), torch.full((16,), -1))
    >>> loss = info_nce(x, k, queue, Pairs(torch.arange(4), torch.arange(4), torch.full((4,), 0.25)), 0.2)
    """
    loss: Tensor = _StreamedInfoNce.apply(  # type: ignore[no-untyped-call]
        student, teacher.detach(), queue, pairs, temperature, exclude
    )
    return loss


class _StreamedInfoNce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, k: Tensor, queue: Queue, pairs: Pairs, temperature: float, exclude: Tensor | None
    ) -> Tensor:
        compute = (
            torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        )
        with torch.autocast(x.device.type, enabled=False):
            normaliser, expected = _over_queue(x.to(compute), queue, temperature, exclude)
            wide, k = x.float(), k.float()
            positive = (wide[pairs.student] * k[pairs.teacher]).sum(dim=1) / temperature
            gap = normaliser[pairs.student] - positive
            weight = pairs.weight.float()
            loss = (weight * F.softplus(gap)).sum()
            pull = (weight * gap.sigmoid())[:, None]
            gradient = torch.zeros_like(wide).index_add_(
                0, pairs.student, pull * (expected[pairs.student] - k[pairs.teacher])
            )
        ctx.dtype = x.dtype
        ctx.save_for_backward(gradient.div_(temperature))
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul(grad_outputs[0]).to(ctx.dtype), None, None, None, None, None


def _over_queue(x: Tensor, queue: Queue, temperature: float, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logsumexp of the negatives' logits (students,) and the queue's mean under their softmax (students, dim)."""
    shift = torch.full((x.shape[0], 1), _FAR_BELOW, device=x.device)
    total = torch.zeros_like(shift)
    expected = torch.zeros_like(x, dtype=torch.float32)
    rows = max(256, _CHUNK_ELEMENTS.get(x.device.type, 2**26) // max(1, x.shape[0]))
    for start in range(0, queue.keys.shape[0], rows):
        keys = queue.keys[start : start + rows].to(x.dtype)
        logits = (x @ keys.T).float().mul_(1.0 / temperature)
        if exclude is not None:
            logits.masked_fill_(exclude[:, None] == queue.image[start : start + rows], -torch.inf)
        higher = torch.maximum(shift, logits.amax(dim=1, keepdim=True))
        logits.sub_(higher).exp_()
        fade = (shift - higher).exp_()
        total.mul_(fade).add_(logits.sum(dim=1, keepdim=True))
        expected.mul_(fade).add_((logits.to(keys.dtype) @ keys).float())
        shift = higher
    # Without any negative `total` is 0: the logsumexp is minus infinity, its weight in every gradient 0.
    return (total.log() + shift)[:, 0], expected.div_(total.clamp_min(torch.finfo(torch.float32).tiny))
