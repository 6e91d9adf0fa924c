"""Cross-entropy between prototype distributions, without ever holding all logits; and Sinkhorn-Knopp in the same form.

Notation: a token's bottleneck vector is x (L2-normalised), a prototype is w_k. Student s has logits z_sk = <x_s, w_k>/T_s;
teacher t has the distribution p_t = softmax((<x_t, w'_k> - centre_k) / T_t). For a pair (s, t) the term is

    -sum_k p_tk log softmax(z_s)_k  =  logsumexp(z_s) - <y_t, x_s> / T_s      with  y_t = sum_k p_tk w_k,

because the logits are linear in x. So a pair costs one dot product of bottleneck size, whatever the number of
prototypes, and a student token's logsumexp is computed once however many teachers it has. The only (tokens x
prototypes) products are one for the students and one for the teachers, and both are streamed in chunks. The gradient is
known as soon as a chunk's softmax is, so the forward pass computes it there and the backward pass only scales it:
memory is (tokens + prototypes) x bottleneck instead of tokens x prototypes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from glocal.distributed import all_reduce_sum
from glocal.objectives.view_pairs import Pairs

# Elements of one chunk of logits. On a CPU a chunk should stay in the last-level cache (2**22 floats are 16 MiB); on a
# GPU a chunk must be large enough to fill the card (2**26 floats are 256 MiB).
_CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}


class Prototypes(NamedTuple):
    """What a loss needs of one network: its tokens in bottleneck space, its prototypes and its temperature."""

    tokens: Float[Tensor, "tokens bottleneck"]
    prototypes: Float[Tensor, "prototypes bottleneck"]
    temperature: float


def prototype_cross_entropy(
    student: Prototypes,
    teacher: Prototypes,
    centre: Float[Tensor, " prototypes"] | Float[Tensor, "positions prototypes"],
    pairs: Pairs,
    position: Int64[Tensor, " teacher_tokens"] | None = None,
) -> Float[Tensor, ""]:
    """Sum over pairs of weight x cross-entropy from the teacher's to the student's prototype distribution.

    Equal to the naive form to rounding. Gradients reach the student's tokens and prototypes only. With `position`,
    `centre` is a table and each teacher token takes the row of its position.

    Cost: 3 products of (student tokens x bottleneck x prototypes) and 3 of the teacher's, one softmax pass each.

    >>> x, w = torch.nn.functional.normalize(torch.randn(4, 8), dim=1), torch.randn(16, 8)
    >>> pairs = Pairs(torch.arange(4), torch.arange(4), torch.ones(4))
    >>> loss = prototype_cross_entropy(Prototypes(x, w, 0.1), Prototypes(x, w, 0.04), torch.zeros(16), pairs)
    """
    loss: Tensor = _StreamedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        student.tokens,
        student.prototypes,
        teacher.tokens.detach(),
        teacher.prototypes.detach(),
        centre.detach(),
        position,
        pairs,
        student.temperature,
        teacher.temperature,
    )
    return loss


class _StreamedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_s: Tensor,
        w_s: Tensor,
        x_t: Tensor,
        w_t: Tensor,
        centre: Tensor,
        position: Tensor | None,
        pairs: Pairs,
        temperature_s: float,
        temperature_t: float,
    ) -> Tensor:
        compute = (
            torch.get_autocast_dtype(x_s.device.type)
            if torch.is_autocast_enabled(x_s.device.type)
            else x_s.dtype
        )
        with torch.autocast(x_s.device.type, enabled=False):
            loss, grad_x, grad_w = _loss_and_gradients(
                x_s.to(compute), w_s.to(compute), x_t.to(compute), w_t.to(compute), centre, position, pairs,
                temperature_s, temperature_t, ctx.needs_input_grad[1],
            )  # fmt: skip
        ctx.dtypes = (x_s.dtype, w_s.dtype)
        ctx.save_for_backward(grad_x, *([] if grad_w is None else [grad_w]))
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_output,) = grad_outputs
        grad_x, *rest = ctx.saved_tensors
        grad_w = rest[0].mul(grad_output).to(ctx.dtypes[1]) if rest else None
        return grad_x.mul(grad_output).to(ctx.dtypes[0]), grad_w, None, None, None, None, None, None, None


def _loss_and_gradients(
    x_s: Tensor, w_s: Tensor, x_t: Tensor, w_t: Tensor, centre: Tensor, position: Tensor | None, pairs: Pairs,
    temperature_s: float, temperature_t: float, need_grad_w: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """The sum of all pairs' terms and its gradients; everything that is reduced is reduced in float32."""
    weight = pairs.weight.float()
    token_weight = weight.new_zeros(x_s.shape[0]).index_add_(0, pairs.student, weight)
    grad_w = torch.zeros_like(w_s, dtype=torch.float32) if need_grad_w else None

    # What each teacher token's students look like together: the prototypes' gradient needs only this.
    audience = torch.zeros_like(x_t, dtype=torch.float32)
    audience.index_add_(0, pairs.teacher, weight[:, None] * x_s.float()[pairs.student])
    expected = torch.empty_like(x_t, dtype=torch.float32)
    for rows in _chunks(x_t, w_t):
        unnormalised, total = _unnormalised(
            x_t[rows], w_t, temperature_t, centre if position is None else centre[position[rows]]
        )
        expected[rows] = _product(unnormalised, w_s) / total
        if grad_w is not None:
            grad_w.addmm_(unnormalised.T, audience[rows] / total, alpha=-1.0 / temperature_s)

    target = torch.zeros_like(x_s, dtype=torch.float32)
    target.index_add_(0, pairs.student, weight[:, None] * expected[pairs.teacher])
    loss = -(target * x_s.float()).sum() / temperature_s
    grad_x = target.neg_()
    for rows in _chunks(x_s, w_s):
        unnormalised, total, shift = _unnormalised_with_shift(x_s[rows], w_s, temperature_s)
        share = token_weight[rows, None]
        loss += (share * (total.log() + shift)).sum()
        grad_x[rows] += _product(unnormalised, w_s) * (share / total)
        if grad_w is not None:
            grad_w.addmm_(unnormalised.T, x_s[rows].float() * (share / total), alpha=1.0 / temperature_s)
    return loss, grad_x.div_(temperature_s), grad_w


def _unnormalised(x: Tensor, w: Tensor, temperature: float, centre: Tensor) -> tuple[Tensor, Tensor]:
    """softmax((x w - centre) / temperature) before division by its row sums, and these sums (rows, 1)."""
    logits = (x @ w.T).float()
    logits.sub_(centre).mul_(1.0 / temperature)
    logits.sub_(logits.amax(dim=1, keepdim=True)).exp_()
    return logits, logits.sum(dim=1, keepdim=True)


def _unnormalised_with_shift(x: Tensor, w: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same without a centre; also the shift (rows, 1) that log(sum) lacks to be the logsumexp."""
    logits = (x @ w.T).float()
    logits.mul_(1.0 / temperature)
    shift = logits.amax(dim=1, keepdim=True)
    logits.sub_(shift).exp_()
    return logits, logits.sum(dim=1, keepdim=True), shift


def _product(distribution: Tensor, w: Tensor) -> Tensor:
    """Distribution @ w in w's precision, float32 out."""
    return (distribution.to(w.dtype) @ w).float()


def _exact_product(x: Tensor, w: Tensor) -> Tensor:
    """Logits in float32, also under autocast: statistics that sum them over a batch would keep a product's rounding."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ w.T


def _chunks(x: Tensor, w: Tensor) -> list[slice]:
    rows = max(16, _CHUNK_ELEMENTS.get(x.device.type, 2**26) // w.shape[0])
    return [slice(start, min(start + rows, x.shape[0])) for start in range(0, x.shape[0], rows)]


@torch.no_grad()
def target_statistics(
    teacher: Prototypes, centre: Float[Tensor, " prototypes"]
) -> tuple[Float[Tensor, ""], Float[Tensor, " prototypes"]]:
    """Mean entropy in nats and mean distribution of the teacher's targets over this process's tokens.

    A mean entropy near ln K with a marginal entropy near ln K is the uniform collapse; a marginal entropy near 0 is
    the constant one.
    """
    x, w = teacher.tokens.float(), teacher.prototypes.float()
    entropy = x.new_zeros(())
    marginal = x.new_zeros(w.shape[0])
    for rows in _chunks(x, w):
        p = ((_exact_product(x[rows], w) - centre) / teacher.temperature).softmax(dim=1)
        marginal += p.sum(dim=0)
        entropy -= torch.special.xlogy(p, p).sum()
    tokens = max(1, x.shape[0])
    return entropy / tokens, marginal / tokens


@torch.no_grad()
def sinkhorn_centre(teacher: Prototypes, iterations: int = 3) -> Float[Tensor, " prototypes"]:
    """The centre for which softmax((logits - centre)/T) equals Sinkhorn-Knopp's assignment (DINOv2; Caron et al. 2020).

    Sinkhorn alternately scales prototypes to equal use over the global batch and samples to one. Its last step is a
    softmax over prototypes with a bias log r_k, r the prototypes' scaling, so its result is a centre of -T log r_k and
    needs (prototypes,) numbers, not the (samples x prototypes) matrix. Logits are recomputed for each chunk in each
    iteration. Sums run over all processes.
    """
    x, w = teacher.tokens.float(), teacher.prototypes.float()
    # Logits are bounded by the prototypes' norm: one shift for all keeps exp in range and equal over processes.
    shift = w.norm(dim=1).amax() / teacher.temperature
    log_scale = x.new_zeros(w.shape[0])
    for iteration in range(iterations):
        use = x.new_zeros(w.shape[0])
        for rows in _chunks(x, w):
            kernel = _exact_product(x[rows], w).mul_(1.0 / teacher.temperature)
            if iteration == 0:
                use += kernel.sub_(shift).exp_().sum(dim=0)
            else:
                use += kernel.add_(log_scale).softmax(dim=1).sum(dim=0)
        all_reduce_sum(use)
        # In later iterations `use` already holds the scale of the last one: the new scale divides by it.
        step = use.clamp_min(1e-30).log()
        log_scale = log_scale - step if iteration else -step
        log_scale = log_scale - log_scale.mean()
    return -teacher.temperature * log_scale
