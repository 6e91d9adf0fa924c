"""Image-level self-distillation over prototypes: DINO's loss, and Mugs's group loss, which is the same with other weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from glocal.errors import ConfigError
from glocal.objectives.base import Branch, Role, Term
from glocal.objectives.prototype_term import PrototypeTerm, PrototypeTermConfig, watch_targets
from glocal.objectives.prototypes import Pairs, prototype_cross_entropy
from glocal.objectives.schedules import Progress
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup

View = tuple[str, int]
"""A view group's name and a number within it."""


class ImageLevelConfig(PrototypeTermConfig):
    """DINO's term: every student view predicts the teacher's prototype distribution of every other global view."""

    kind: Literal["image_level"] = "image_level"
    pair_weights: Literal["flat", "balanced"] = "flat"
    """`flat`: every pair counts alike (DINO). `balanced`: views as large as the teacher's share one half, smaller ones
    the other (Mugs)."""
    skip_same_number: bool = False
    """Leave out the pair of the student's and the teacher's n-th view also when they are different crops, as the Mugs
    reference does; one view is never paired with itself."""

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> ImageLevel:
        """Make the term."""
        return ImageLevel(self, embed_dim, groups)


class ImageLevel(PrototypeTerm):
    """Mean over (teacher view, other student view) of the cross-entropy of their prototype distributions.

    Caron et al. 2021, "Emerging properties in self-supervised vision transformers", equation 3 with multi-crop. Exact
    to the reference; departures: the frozen prototypes' epoch is at most a tenth of the run; the cross-entropy is
    streamed (`prototypes.py`), which changes rounding only; `finish_step` applies the centre once a step, so gradient
    accumulation equals one large batch.
    """

    def __init__(self, config: ImageLevelConfig, embed_dim: int, groups: Mapping[str, ViewGroup]) -> None:
        super().__init__(config, embed_dim)
        self.teacher_views = views_seen_by("teacher", groups)
        self.student_views = views_seen_by("student", groups)
        self.pairs = pair_table(
            self.teacher_views, self.student_views, groups, config.pair_weights, config.skip_same_number
        )

    def forward(self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool) -> Term:
        """Stack class embeddings, project, compare; scalars as in `watch_targets` when watched."""
        cls_student = stack_cls(student, self.student_views)
        batch = cls_student.shape[0]
        online = self.online(student, cls_student.flatten(0, 1))
        target, centre = self.target(teacher, stack_cls(teacher, self.teacher_views).flatten(0, 1), progress)
        pairs = repeat_over_batch(
            self.pairs, batch, len(self.student_views), len(self.teacher_views), cls_student.device
        )
        loss = prototype_cross_entropy(online, target, centre, pairs) / batch
        return Term(loss, watch_targets(target, centre) if watch else {})


def views_seen_by(role: Role, groups: Mapping[str, ViewGroup]) -> list[View]:
    """Every (group, number) that a network sees, in the recipe's order."""
    return [(name, i) for name, g in groups.items() if g.seen_by in (role, "both") for i in range(g.count)]


def stack_cls(branch: Branch, views: Sequence[View]) -> Float[Tensor, "batch views dim"]:
    """Class embeddings of these views, in this order."""
    return torch.stack([branch.features[name].cls[:, i] for name, i in views], dim=1)


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
    """The pair table for every image, as indices of image-major flattened tokens. Built on the CPU: making small
    tensors from lists on a GPU would wait for it.
    """
    student, teacher, weight = zip(*table, strict=True)
    image = torch.arange(batch)[:, None]

    def index(view: Sequence[int], views: int) -> Int64[Tensor, " pairs"]:
        return (image * views + torch.tensor(view)).flatten()

    weights = torch.tensor(weight).expand(batch, -1).flatten()
    return Pairs(index(student, student_views), index(teacher, teacher_views), weights).to(device)
