"""Image-level self-distillation over prototypes: DINO's loss, and Mugs's group loss, which is the same with other weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from glocal.objectives.base import Branch, Term
from glocal.objectives.over_prototypes.cross_entropy import prototype_cross_entropy
from glocal.objectives.over_prototypes.prototype_term import PrototypeTerm, PrototypeTermConfig, watch_targets
from glocal.objectives.view_pairs import pair_table, repeat_over_batch, stack_cls, views_seen_by
from glocal.schedules import Progress
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup


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

    def forward(
        self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool
    ) -> Term:
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
