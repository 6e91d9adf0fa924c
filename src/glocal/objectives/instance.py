"""Instance discrimination against a queue of keys: the finest of Mugs' three granularities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from glocal.config import Config
from glocal.models.heads import PredictionHead, ProjectionHead
from glocal.objectives.base import Branch, Objective, ObjectiveConfig, Role, Term
from glocal.objectives.gathered_memory import GatheredMemory
from glocal.objectives.image_level import pair_table, repeat_over_batch, stack_cls, views_seen_by
from glocal.objectives.info_nce import Queue, info_nce
from glocal.objectives.memory import StorageType
from glocal.objectives.schedules import Progress, Schedule, value_at
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup

Positive = Annotated[int, Field(ge=1)]


class ContrastiveHeadConfig(Config):
    """A projection onto the unit sphere, and the student's predictor behind it (Mugs)."""

    hidden: Positive = 2048
    layers: Positive = 3
    out_dim: Positive = 256
    predictor_hidden: Positive = 4096

    def build(self, embed_dim: int, role: Role) -> ContrastiveHead:
        """A new head for embeddings of this size."""
        return ContrastiveHead(self, embed_dim, role)


class ContrastiveHead(nn.Module):
    """Projection, then for the student prediction; either way onto the unit sphere.

    >>> ContrastiveHead(ContrastiveHeadConfig(hidden=8, out_dim=4), 16, "teacher")(torch.randn(5, 16)).shape
    torch.Size([5, 4])
    """

    def __init__(self, config: ContrastiveHeadConfig, embed_dim: int, role: Role) -> None:
        super().__init__()
        self.projection = ProjectionHead(embed_dim, hidden=config.hidden, out_dim=config.out_dim, layers=config.layers)
        self.prediction = PredictionHead(config.out_dim, hidden=config.predictor_hidden) if role == "student" else None

    def forward(self, x: Float[Tensor, "*batch embed_dim"]) -> Float[Tensor, "*batch out_dim"]:
        """Unit vectors, float32: predictions of the student, keys of the teacher."""
        projected: Tensor = self.projection(x)
        return projected if self.prediction is None else self.prediction(projected)  # type: ignore[no-any-return]


class ContrastConfig(ObjectiveConfig):
    """What the instance and the local-group term have in common: head, queue, temperature and pairs."""

    head: ContrastiveHeadConfig = ContrastiveHeadConfig()
    temperature: float | Schedule = 0.2
    pair_weights: Literal["flat", "balanced"] = "balanced"
    """`balanced`: views as large as the teacher's share one half, smaller ones the other (Mugs). `flat`: every pair
    counts alike."""
    skip_same_number: bool = False
    """Leave out the pair of the student's and the teacher's n-th view also when they are different crops (reference)."""
    queue: Positive = 65536
    """Keys to be told apart from; a step writes one a teacher view and image."""
    exclude_own: bool = True
    """An image's keys and rows of earlier epochs are neither its negatives nor its neighbours."""
    storage: StorageType = "bf16"
    """Of queue and memories."""
    fill_random: bool = False
    """Queue and memories start full of noise that counts as rows (reference), instead of empty."""


class InstanceConfig(ContrastConfig):
    """Mugs' instance discrimination: a student view tells its image's teacher keys from those of other images."""

    kind: Literal["instance"] = "instance"

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> Instance:
        """Make the term."""
        return Instance(self, embed_dim, groups)


class QueueContrast(Objective):
    """Pairs of views, a key queue and the InfoNCE between them; subclasses say what is told apart."""

    def __init__(self, config: ContrastConfig, embed_dim: int, groups: Mapping[str, ViewGroup]) -> None:
        super().__init__()
        self.embed_dim, self.contrast = embed_dim, config
        self.teacher_views = views_seen_by("teacher", groups)
        self.student_views = views_seen_by("student", groups)
        self.pairs = pair_table(
            self.teacher_views, self.student_views, groups, config.pair_weights, config.skip_same_number
        )
        self.queue = GatheredMemory(
            config.queue, config.head.out_dim, config.storage, unit_rows=True, fill_random=config.fill_random
        )

    def against_queue(
        self,
        predictions: Float[Tensor, "batch student_views out_dim"],
        keys: Float[Tensor, "batch teacher_views out_dim"],
        views: Views,
        progress: Progress,
    ) -> Float[Tensor, ""]:
        """Mean over images of the weighted mean over pairs; keeps the keys for the end of the step."""
        batch, students = predictions.shape[:2]
        device = predictions.device
        image = views.index.to(device, non_blocking=True)
        pairs = repeat_over_batch(self.pairs, batch, students, keys.shape[1], device)
        loss = info_nce(
            predictions.flatten(0, 1),
            keys.flatten(0, 1),
            Queue(self.queue.rows(), self.queue.images()),
            pairs,
            value_at(self.contrast.temperature, progress),
            image.repeat_interleave(students) if self.contrast.exclude_own else None,
        )
        self.queue.gather(keys, image)
        return loss / batch

    def watch_queue(self) -> dict[str, Tensor]:
        """How full the queue is, and how many steps old its keys are on average."""
        return {"queue_fill": self.queue.fill(), "queue_age": self.queue.mean_age()}

    def finish_step(self) -> None:
        """Enqueue this step's keys of all processes."""
        self.queue.finish_step()


class Instance(QueueContrast):
    """InfoNCE between class embeddings: student predictions against teacher keys and a queue of earlier keys.

    Zhou et al. 2022 (arXiv 2203.14415), instance discrimination, after MoCo. Departures from the reference: all pairs
    of different crops count, the n-th with the n-th too; an image's own earlier keys are no negatives; the queue starts
    empty, so the first step's loss is 0, and holds bfloat16; keys are enqueued image by image; weights of terms weigh.
    `mugs-reference` keeps the reference's choices but for the order of enqueuing, which a queue's content shows only at
    its oldest end.
    """

    def __init__(self, config: InstanceConfig, embed_dim: int, groups: Mapping[str, ViewGroup]) -> None:
        super().__init__(config, embed_dim, groups)
        self.config = config

    def build_heads(self, role: Role) -> ContrastiveHead:
        """Projection, and the student's predictor."""
        return self.config.head.build(self.embed_dim, role)

    def forward(self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool) -> Term:
        """Stack class embeddings, project, contrast."""
        predictions = student.heads(stack_cls(student, self.student_views))
        with torch.no_grad():
            keys = teacher.heads(stack_cls(teacher, self.teacher_views))
        loss = self.against_queue(predictions, keys, views, progress)
        return Term(loss, self.watch_queue() if watch else {})
