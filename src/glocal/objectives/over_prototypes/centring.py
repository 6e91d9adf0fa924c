"""Keeping the teacher from one answer: a centre for its logits, by moving average (DINO) or by Sinkhorn-Knopp (DINOv2)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from glocal.config import Config
from glocal.distributed import all_reduce_sum
from glocal.objectives.over_prototypes.cross_entropy import Prototypes, sinkhorn_centre


class CentringConfig(Config):
    """How the teacher's distributions are kept spread over the prototypes."""

    method: Literal["centre", "sinkhorn"] = "centre"
    """`centre` subtracts a moving average of the logits; `sinkhorn` balances every batch exactly."""
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Of the moving average; unused by `sinkhorn`."""
    iterations: Annotated[int, Field(ge=1)] = 3
    """Of Sinkhorn-Knopp; unused by `centre`."""


class TeacherCentre(nn.Module):
    """The (prototypes,) vector subtracted from the teacher's logits, and what this step has seen of them.

    The mean logit is linear in the tokens, so it costs one matrix-vector product and no logits. Departure from none:
    the loss of a step uses the centre of the steps before it, as DINO does.
    """

    centre: Tensor
    seen_sum: Tensor
    seen_count: Tensor

    def __init__(self, prototypes: int, config: CentringConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("centre", torch.zeros(prototypes))
        # One buffer for sum and count, so that a step's statistics cross processes in one message.
        self.register_buffer("seen_sum", torch.zeros(prototypes), persistent=False)
        self.register_buffer("seen_count", torch.zeros(1), persistent=False)

    @torch.no_grad()
    def for_targets(self, teacher: Prototypes) -> Float[Tensor, " prototypes"]:
        """The centre to use for these tokens; notes their mean logits for the next step's."""
        if self.config.method == "sinkhorn":
            return sinkhorn_centre(teacher, self.config.iterations)
        with torch.autocast(teacher.tokens.device.type, enabled=False):
            self.seen_sum += teacher.prototypes.float() @ teacher.tokens.float().sum(dim=0)
        self.seen_count += teacher.tokens.shape[0]
        return self.centre

    @torch.no_grad()
    def finish_step(self) -> None:
        """Move the centre towards the mean logits of this step over all micro-batches and processes."""
        if self.config.method == "sinkhorn":
            return
        seen = all_reduce_sum(torch.cat([self.seen_sum, self.seen_count]))
        count = seen[-1]
        # A step without tokens (no patch matched anywhere) leaves the centre; `where` decides without a device sync.
        mean = torch.where(count > 0, seen[:-1] / count.clamp_min(1), self.centre)
        self.centre.lerp_(mean, 1.0 - self.config.momentum)
        self.seen_sum.zero_()
        self.seen_count.zero_()
