"""Instance discrimination against a queue of keys: the finest of Mugs' three granularities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from glocal.objectives.base import Branch, Role, Term
from glocal.objectives.by_contrast.queue_contrast import ContrastiveHead, QueueContrast, QueueContrastConfig
from glocal.objectives.view_pairs import stack_cls
from glocal.schedules import Progress
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup


class InstanceConfig(QueueContrastConfig):
    """Mugs' instance discrimination: a student view tells its image's teacher keys from those of other images."""

    kind: Literal["instance"] = "instance"

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> Instance:
        """Make the term."""
        return Instance(self, embed_dim, groups)


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
        return self.config.head.with_predictor(self.embed_dim, role)

    def forward(
        self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool
    ) -> Term:
        """Stack class embeddings, project, contrast."""
        predictions = student.heads(stack_cls(student, self.student_views))
        with torch.no_grad():
            keys = teacher.heads(stack_cls(teacher, self.teacher_views))
        loss = self.against_queue(predictions, keys, views, progress)
        return Term(loss, self.watch_queue() if watch else {})
