"""What the terms over prototypes share: a head, two temperatures, a centre, and the two numbers that show a collapse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from glocal.config import Config
from glocal.distributed import all_reduce_sum
from glocal.models.heads import PrototypeHead
from glocal.objectives.base import Branch, Objective, ObjectiveConfig, Role
from glocal.objectives.over_prototypes.cross_entropy import Prototypes, sinkhorn_centre, target_statistics
from glocal.schedules import Progress, Schedule, value_at


class HeadConfig(Config):
    """An MLP to a bottleneck on the unit sphere, and prototypes there (DINO)."""

    hidden: Annotated[int, Field(ge=1)] = 2048
    """Width of its hidden layers."""
    layers: Annotated[int, Field(ge=1)] = 3
    """Its linear layers before the prototypes."""
    bottleneck: Annotated[int, Field(ge=1)] = 256
    """Width in front of the prototypes."""
    prototypes: Annotated[int, Field(ge=2)] = 65536
    """How many there are: the classes that the networks agree on."""
    norm_last_layer: bool = True
    """Prototypes are unit vectors; otherwise each has a learnt length."""
    init: Literal["trunc_normal", "fan_in"] = "trunc_normal"
    """`trunc_normal`: std 0.02 (DINO). `fan_in`: std 1/sqrt(fan in), for small widths and high learning rates."""
    frozen_epochs: Annotated[float, Field(ge=0)] = 1.0
    """Prototypes get no gradient during the first epochs; at most a tenth of the run."""

    def build(self, embed_dim: int) -> PrototypeHead:
        """A new head for embeddings of this size."""
        return PrototypeHead(
            embed_dim, hidden=self.hidden, bottleneck=self.bottleneck, prototypes=self.prototypes,
            layers=self.layers, norm_last_layer=self.norm_last_layer, fan_in=self.init == "fan_in",
        )  # fmt: skip

    def frozen(self, progress: Progress) -> bool:
        """Whether the prototypes stand still in this step."""
        return progress.step < min(self.frozen_epochs * progress.steps_per_epoch, progress.total_steps / 10)


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


class PrototypeTermConfig(ObjectiveConfig):
    """Settings of a term that compares prototype distributions."""

    head: HeadConfig = HeadConfig()
    student_temperature: Annotated[float, Field(gt=0)] = 0.1
    """Divides the student's logits: lower is sharper."""
    teacher_temperature: float | Schedule = 0.04
    """Divides the teacher's logits, a number or a schedule: lower is sharper, and too low invites collapse to one prototype."""
    centring: CentringConfig = CentringConfig()


class PrototypeTerm(Objective):
    """A term whose student predicts the teacher's distribution over prototypes."""

    def __init__(self, config: PrototypeTermConfig, embed_dim: int) -> None:
        super().__init__()
        self.prototype_settings, self.embed_dim = config, embed_dim
        self.centre = TeacherCentre(config.head.prototypes, config.centring)

    def build_heads(self, role: Role) -> PrototypeHead:
        """The same head for both networks."""
        return self.prototype_settings.head.build(self.embed_dim)

    def frozen(self, heads: nn.Module, progress: Progress) -> Iterator[nn.Parameter]:
        """The prototypes, during the first epochs."""
        if self.prototype_settings.head.frozen(progress):
            yield from _prototype_head(heads).prototype_parameters()

    def online(self, student: Branch, embeddings: Float[Tensor, "tokens dim"]) -> Prototypes:
        """The student's side of the comparison."""
        head = _prototype_head(student.heads)
        return Prototypes(
            head.bottleneck(embeddings), head.prototypes(), self.prototype_settings.student_temperature
        )

    @torch.no_grad()
    def target(
        self, teacher: Branch, embeddings: Float[Tensor, "tokens dim"], progress: Progress
    ) -> tuple[Prototypes, Float[Tensor, " prototypes"]]:
        """The teacher's side, and the centre for these tokens, which are noted for the next step's."""
        head = _prototype_head(teacher.heads)
        temperature = value_at(self.prototype_settings.teacher_temperature, progress)
        target = Prototypes(head.bottleneck(embeddings), head.prototypes(), temperature)
        return target, self.centre.for_targets(target)

    def finish_step(self) -> None:
        """Move the centre."""
        self.centre.finish_step()


def watch_targets(teacher: Prototypes, centre: Tensor) -> dict[str, Tensor]:
    """Entropy of the targets and of their mean, each as a share of ln K: the two numbers that show a collapse."""
    entropy, marginal = target_statistics(teacher, centre)
    most = math.log(marginal.shape[0])
    marginal_entropy = -torch.special.xlogy(marginal, marginal).sum()
    return {"target_entropy": entropy / most, "marginal_entropy": marginal_entropy / most}


def _prototype_head(heads: nn.Module) -> PrototypeHead:
    assert isinstance(heads, PrototypeHead)
    return heads
