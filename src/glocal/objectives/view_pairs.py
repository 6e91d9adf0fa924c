"""Who is compared with whom: pairs of tokens, what every term sums over, and of the views of image-level terms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from glocal.errors import ConfigError
from glocal.objectives.base import Branch, Role
from glocal.views.groups import ViewGroup

View = tuple[str, int]
"""A view group's name and a number within it."""


class Pairs(NamedTuple):
    """Which student token learns from which teacher token, and with what weight. Weights need not sum to one."""

    student: Int64[Tensor, " pairs"]
    teacher: Int64[Tensor, " pairs"]
    weight: Float[Tensor, " pairs"]

    def to(self, device: torch.device) -> Pairs:
        """The pairs on the device of the features, copied without waiting for it."""
        return Pairs(*(t.to(device, non_blocking=True) for t in self))


def views_seen_by(role: Role, groups: Mapping[str, ViewGroup]) -> list[View]:
    """Every (group, number) that a network sees, in the recipe's order."""
    return [(name, i) for name, g in groups.items() if g.seen_by in (role, "both") for i in range(g.count)]


def largest_views(views: Sequence[View], groups: Mapping[str, ViewGroup]) -> list[View]:
    """Those of them with the most pixels (DINO's global views), in their order."""
    pixels = [math.prod(groups[name].height_width) for name, _ in views]
    return [view for view, size in zip(views, pixels, strict=True) if size == max(pixels)]


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


def flat_pair_weights(
    teacher_views: Sequence[View], student_views: Sequence[View], groups: Mapping[str, ViewGroup]
) -> Float[Tensor, "students teachers"]:
    """The table of flat weights as a matrix: 0 where a view would meet itself, all others alike, summing to one.

    Raises:
        ConfigError: when no pair is left.
    """
    weights = torch.zeros(len(student_views), len(teacher_views))
    for student, teacher, weight in pair_table(teacher_views, student_views, groups, "flat"):
        weights[student, teacher] = weight
    return weights


def repeat_over_batch(
    table: Sequence[tuple[int, int, float]],
    batch: int,
    student_views: int,
    teacher_views: int,
    device: torch.device,
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
