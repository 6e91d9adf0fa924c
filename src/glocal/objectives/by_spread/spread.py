"""Spread: image embeddings of one step pushed apart, from the nearest one or from all by a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from glocal.distributed import gather_rows, rank
from glocal.models.heads import unit_length
from glocal.objectives.base import Branch, Objective, ObjectiveConfig, Role, Term
from glocal.objectives.view_pairs import largest_views, stack_cls, views_seen_by
from glocal.schedules import Progress, Schedule
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup


class SpreadConfig(ObjectiveConfig):
    """How image embeddings are kept apart, before any head."""

    kind: Literal["spread"] = "spread"
    weight: float | Schedule = 0.1
    form: Literal["koleo", "kernel_density"] = "kernel_density"
    """`koleo`: minus the log of the distance to the nearest other image (DINOv2). `kernel_density`: the log of the
    density of all others around it, which is bounded: images that occur twice pull no harder than near ones."""
    concentration: Annotated[float, Field(gt=0)] = 4.0
    """Of the kernel exp(concentration * (cosine - 1)); 4 is Wang & Isola's t = 2."""

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> Spread:
        """Make the term."""
        return Spread(self, groups)

    def check_batch(self, key: str, batch_size: int, groups: Mapping[str, ViewGroup]) -> None:
        """One image alone has nothing to be spread from."""
        if batch_size < 2:
            raise ValueError(
                f"{key} spreads the images of a step, but training.batch_size is {batch_size}. Set training.batch_size "
                "to at least 2, better some hundreds"
            )


class Spread(Objective):
    """Mean over the student's large views and images of how near the other images of the step lie, in the same view.

    `koleo`: Sablayrolles et al. 2019 (arXiv 1806.03198), as in DINOv2: -log(distance to the nearest + 1e-8) of unit
    vectors. `kernel_density`: log of the mean of exp(c (cosine - 1)) over all others, the entropy of a kernel density
    (Wang & Isola 2020, arXiv 2005.10242, whose mean stands inside the log). Departure: neighbours are sought among the
    images of all processes, not of one. Cost: (images of this process x embedding x images of all) products a view.
    """

    def __init__(self, config: SpreadConfig, groups: Mapping[str, ViewGroup]) -> None:
        super().__init__()
        self.config = config
        self.views = largest_views(views_seen_by("student", groups), groups)

    @property
    def needs_teacher(self) -> bool:
        """It is the student's embeddings that are spread."""
        return False

    def build_heads(self, role: Role) -> nn.Module:
        """None: embeddings are spread as they are."""
        return nn.Identity()

    def forward(
        self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool
    ) -> Term:
        """Stack class embeddings, compare each with those of other images; watched: the mean nearest cosine."""
        mine = unit_length(stack_cls(student, self.views))
        every = gather_rows(mine).transpose(0, 1)
        image = torch.arange(len(views), device=mine.device) + rank() * len(views)
        itself = image[:, None] == torch.arange(every.shape[1], device=mine.device)
        mine = mine.transpose(0, 1)
        with torch.autocast(mine.device.type, enabled=False):
            cosine = (mine @ every.transpose(1, 2)).masked_fill(itself, -torch.inf)
            if self.config.form == "koleo":
                loss = nearest_distance_loss(mine, every, cosine.detach())
            else:
                loss = kernel_density_loss(cosine, itself, self.config.concentration)
        return Term(loss, {"nearest_cosine": cosine.detach().amax(dim=2).mean()} if watch else {})


def nearest_distance_loss(
    x: Float[Tensor, "views batch dim"],
    every: Float[Tensor, "views all dim"],
    cosine: Float[Tensor, "views batch all"],
) -> Float[Tensor, ""]:
    """KoLeo: minus the mean log of the distance to the nearest of `every` by `cosine`, which hides what is not to be."""
    nearest = cosine.argmax(dim=2)[..., None].expand(-1, -1, x.shape[2])
    # The norm's gradient at 0 is 0, so two equal embeddings have a finite loss (18.4) and no pull on each other.
    distance = torch.linalg.vector_norm(x - every.gather(1, nearest), dim=2)
    logarithm: Tensor = (distance + 1e-8).log()
    return -logarithm.mean()


def kernel_density_loss(
    cosine: Float[Tensor, "views batch all"], hidden: Bool[Tensor, "batch all"], concentration: float
) -> Float[Tensor, ""]:
    """Mean log density of the others, from -2 x concentration (all opposite) to 0 (all equal)."""
    exponent = (concentration * (cosine - 1.0)).masked_fill(hidden, -torch.inf)
    density: Tensor = exponent.logsumexp(dim=2) - (~hidden).sum(dim=1).log()
    return density.mean()
