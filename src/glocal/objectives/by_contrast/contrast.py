"""NT-Xent: a view's image embedding is told from those of all other images of the step (SimCLR)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from glocal.distributed import gather_rows, rank
from glocal.models.heads import ProjectionHead
from glocal.objectives.base import Branch, Objective, ObjectiveConfig, Role, Term
from glocal.objectives.by_contrast.projection import ProjectionConfig
from glocal.objectives.by_contrast.step_info_nce import is_nearest, step_info_nce
from glocal.objectives.view_pairs import flat_pair_weights, stack_cls, views_seen_by
from glocal.schedules import Progress, Schedule, value_at
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup


class ContrastConfig(ObjectiveConfig):
    """SimCLR's contrast of image embeddings, in which the other images of the step are all that is told apart."""

    kind: Literal["contrast"] = "contrast"
    head: ProjectionConfig = ProjectionConfig()
    temperature: Annotated[float, Field(gt=0)] | Schedule = 0.2
    """Divides the similarities: lower weighs the hardest negatives more."""
    targets: Literal["student", "teacher"] = "student"
    """Whose embeddings a view is compared with: the student's other views, gradient on both sides and no forward pass
    of the teacher (SimCLR), or the EMA teacher's, without gradient (as in MoCo v3)."""

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> Contrast:
        """Make the term.

        Raises:
            ConfigError: when there are no two views to be compared.
        """
        return Contrast(self, embed_dim, groups)

    def check_batch(self, key: str, batch_size: int, groups: Mapping[str, ViewGroup]) -> None:
        """One image alone has nothing to be told apart from."""
        if batch_size < 2:
            raise ValueError(
                f"{key} tells the images of a step apart, but training.batch_size is {batch_size}. Set "
                "training.batch_size to at least 2, better some hundreds"
            )


class Contrast(Objective):
    """Mean over (view, other view of the image) of InfoNCE against all views of all other images of the step.

    Chen et al. 2020 (arXiv 2002.05709), equation 1; with two views it is their NT-Xent. Departures: any number of
    views, each pair by itself, so that an image's further views are neither positives nor negatives of it; no batch
    norm in the head; the temperature may be a schedule. `instance` is the same contrast against a queue.

    Negatives are those of all processes, so the loss doesn't depend on how images are shared out. Cost: one product of
    (views of this process x out_dim x views of all), logits held in float32.
    """

    pair_weight: Float[Tensor, "views targets"]

    def __init__(self, config: ContrastConfig, embed_dim: int, groups: Mapping[str, ViewGroup]) -> None:
        super().__init__()
        self.config, self.embed_dim = config, embed_dim
        self.views = views_seen_by("student", groups)
        self.target_views = views_seen_by(config.targets, groups)
        self.register_buffer(
            "pair_weight", flat_pair_weights(self.target_views, self.views, groups), persistent=False
        )

    @property
    def needs_teacher(self) -> bool:
        """Only for its embeddings as targets."""
        return self.config.targets == "teacher"

    def build_heads(self, role: Role) -> ProjectionHead:
        """The projection; the teacher's follows the student's and serves as target or for another term."""
        return self.config.head.build(self.embed_dim)

    def forward(
        self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool
    ) -> Term:
        """Stack class embeddings, project, contrast; watched: how alike positives are, how often nearest."""
        anchors = student.heads(stack_cls(student, self.views))
        targets = anchors
        if self.needs_teacher:
            with torch.no_grad():
                targets = teacher.heads(stack_cls(teacher, self.target_views))
        return self.compare(anchors, targets, value_at(self.config.temperature, progress), watch)

    def compare(
        self,
        anchors: Float[Tensor, "batch views dim"],
        targets: Float[Tensor, "batch targets dim"],
        temperature: float,
        watch: bool = False,
    ) -> Term:
        """The term on unit vectors: this process's anchors against the targets of all processes."""
        with torch.autocast(anchors.device.type, enabled=False):
            (batch, count), every = anchors.shape[:2], gather_rows(targets)
            image = torch.arange(batch, device=anchors.device) + rank() * batch
            same = image[:, None] == torch.arange(every.shape[0], device=anchors.device)
            same = same.repeat_interleave(every.shape[1], dim=1).repeat_interleave(count, dim=0)
            logits = anchors.flatten(0, 1) @ every.flatten(0, 1).T / temperature
            positive = (anchors @ targets.transpose(1, 2)).flatten(0, 1) / temperature
            weight = self.pair_weight.repeat(batch, 1) / batch
            loss = (weight * step_info_nce(logits, same, positive)).sum()
        if not watch:
            return Term(loss, {})
        similarity = (weight * positive).sum() * temperature
        accuracy = (weight * is_nearest(logits, same, positive)).sum()
        return Term(loss, {"positive_similarity": similarity, "accuracy": accuracy})
