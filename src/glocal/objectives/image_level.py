"""Image-level self-distillation over prototypes: DINO's loss, and Mugs's group loss, which is the same with other weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from glocal.config import Config
from glocal.errors import ConfigError
from glocal.models.heads import PrototypeHead
from glocal.objectives.base import Branch, Objective, ObjectiveConfig, Role, Term
from glocal.objectives.centring import CentringConfig, TeacherCentre
from glocal.objectives.prototypes import Pairs, Prototypes, prototype_cross_entropy, target_statistics
from glocal.objectives.schedules import Progress, Schedule, value_at
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup

View = tuple[str, int]
"""A view group's name and a number within it."""


class HeadConfig(Config):
    """An MLP to a bottleneck on the unit sphere, and prototypes there (DINO)."""

    hidden: Annotated[int, Field(ge=1)] = 2048
    layers: Annotated[int, Field(ge=1)] = 3
    bottleneck: Annotated[int, Field(ge=1)] = 256
    prototypes: Annotated[int, Field(ge=2)] = 65536
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


class ImageLevelConfig(ObjectiveConfig):
    """DINO's term: every student view predicts the teacher's prototype distribution of every other global view."""

    kind: Literal["image_level"] = "image_level"
    head: HeadConfig = HeadConfig()
    student_temperature: Annotated[float, Field(gt=0)] = 0.1
    teacher_temperature: float | Schedule = 0.04
    centring: CentringConfig = CentringConfig()
    pair_weights: Literal["flat", "balanced"] = "flat"
    """`flat`: every pair counts alike (DINO). `balanced`: views as large as the teacher's share one half, smaller ones
    the other (Mugs)."""
    skip_same_number: bool = False
    """Leave out the pair of the student's and the teacher's n-th view also when they are different crops, as the Mugs
    reference does; one view is never paired with itself."""

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> ImageLevel:
        """Make the term."""
        return ImageLevel(self, embed_dim, groups)


class ImageLevel(Objective):
    """Mean over (teacher view, other student view) of the cross-entropy of their prototype distributions.

    Caron et al. 2021, "Emerging properties in self-supervised vision transformers", equation 3 with multi-crop. Exact
    to the reference; departures: the frozen prototypes' epoch is at most a tenth of the run; the cross-entropy is
    streamed (`prototypes.py`), which changes rounding only; `finish_step` applies the centre once a step, so gradient
    accumulation equals one large batch.
    """

    def __init__(self, config: ImageLevelConfig, embed_dim: int, groups: Mapping[str, ViewGroup]) -> None:
        super().__init__()
        self.config, self.embed_dim = config, embed_dim
        self.teacher_views = views_seen_by("teacher", groups)
        self.student_views = views_seen_by("student", groups)
        self.pairs = pair_table(
            self.teacher_views, self.student_views, groups, config.pair_weights, config.skip_same_number
        )
        self.centre = TeacherCentre(config.head.prototypes, config.centring)

    def build_heads(self, role: Role) -> PrototypeHead:
        """The same head for both networks."""
        return self.config.head.build(self.embed_dim)

    def frozen(self, heads: nn.Module, progress: Progress) -> Iterator[nn.Parameter]:
        """The prototypes, during the first epochs."""
        assert isinstance(heads, PrototypeHead)
        if self.config.head.frozen(progress):
            yield from heads.prototype_parameters()

    def forward(self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool) -> Term:
        """Stack class embeddings, project, compare; scalars as in `watch_targets` when watched."""
        assert isinstance(student.heads, PrototypeHead) and isinstance(teacher.heads, PrototypeHead)
        cls_student = stack_cls(student, self.student_views)
        batch = cls_student.shape[0]
        tokens = student.heads.bottleneck(cls_student.flatten(0, 1))
        online = Prototypes(tokens, student.heads.prototypes(), self.config.student_temperature)
        with torch.no_grad():
            tokens = teacher.heads.bottleneck(stack_cls(teacher, self.teacher_views).flatten(0, 1))
            temperature = value_at(self.config.teacher_temperature, progress)
            target = Prototypes(tokens, teacher.heads.prototypes(), temperature)
            centre = self.centre.for_targets(target)
        pairs = repeat_over_batch(self.pairs, batch, len(self.student_views), len(self.teacher_views), tokens.device)
        loss = prototype_cross_entropy(online, target, centre, pairs) / batch
        return Term(loss, watch_targets(target, centre) if watch else {})

    def finish_step(self) -> None:
        """Move the centre."""
        self.centre.finish_step()


def views_seen_by(role: Role, groups: Mapping[str, ViewGroup]) -> list[View]:
    """Every (group, number) that a network sees, in the recipe's order."""
    return [(name, i) for name, g in groups.items() if g.seen_by in (role, "both") for i in range(g.count)]


def stack_cls(branch: Branch, views: Sequence[View]) -> Float[Tensor, "batch views dim"]:
    """Class embeddings of these views, in this order."""
    return torch.stack([branch.features[name].cls[:, i] for name, i in views], dim=1)


def watch_targets(teacher: Prototypes, centre: Tensor) -> dict[str, Tensor]:
    """Entropy of the targets and of their mean, each as a share of ln K: the two numbers that show a collapse."""
    entropy, marginal = target_statistics(teacher, centre)
    most = math.log(marginal.shape[0])
    marginal_entropy = -torch.special.xlogy(marginal, marginal).sum()
    return {"target_entropy": entropy / most, "marginal_entropy": marginal_entropy / most}


def pair_table(
    teacher_views: Sequence[View],
    student_views: Sequence[View],
    groups: Mapping[str, ViewGroup],
    weights: Literal["flat", "balanced"],
    skip_same_number: bool = False,
) -> list[tuple[int, int, float]]:
    """(student view, teacher view, weight) of every pair that is not one view with itself; weights sum to one.

    Raises:
        ConfigError: when no pair is left.
    """
    pairs = [
        (s, t)
        for t, view_t in enumerate(teacher_views)
        for s, view_s in enumerate(student_views)
        if view_s != view_t and not (skip_same_number and s == t)
    ]
    if not pairs:
        raise ConfigError(
            f"An image-level term needs a teacher view and another student view; the teacher sees {list(teacher_views)}, "
            f"the student {list(student_views)}. Raise a group's count or add a group seen by the student."
        )
    if weights == "flat":
        return [(s, t, 1.0 / len(pairs)) for s, t in pairs]
    largest = max(groups[name].height_width for name, _ in teacher_views)
    is_large = [groups[name].height_width >= largest for name, _ in student_views]
    large = sum(is_large[s] for s, _ in pairs)
    small = len(pairs) - large
    halves = 2.0 if large and small else 1.0
    return [(s, t, 1.0 / (halves * (large if is_large[s] else small))) for s, t in pairs]


def repeat_over_batch(
    table: Sequence[tuple[int, int, float]], batch: int, student_views: int, teacher_views: int, device: torch.device
) -> Pairs:
    """The pair table for every image, as indices of image-major flattened tokens."""
    student, teacher, weight = zip(*table, strict=True)
    image = torch.arange(batch, device=device)[:, None]

    def index(view: Sequence[int], views: int) -> Int64[Tensor, " pairs"]:
        return (image * views + torch.tensor(view, device=device)).flatten()

    weights = torch.tensor(weight, device=device).expand(batch, -1).flatten()
    return Pairs(index(student, student_views), index(teacher, teacher_views), weights)
