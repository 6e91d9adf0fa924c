"""SimDINOv2's patch term: the student's embeddings of patches it can't see, turned to the teacher's, who sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from glocal.models.backbone import Backbone
from glocal.models.heads import ProjectionHead
from glocal.objectives.base import Branch, Objective, ObjectiveConfig, Role, Term
from glocal.objectives.by_contrast.projection import ProjectionConfig
from glocal.objectives.masks import MaskConfig, masked_groups, masked_tokens, masks_of_views
from glocal.objectives.patch_pairs import gather_patches
from glocal.schedules import Progress
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup


class MaskedAlignmentConfig(ObjectiveConfig):
    """Alignment of masked patches on the sphere, without prototypes.

    While `weight` is a schedule that stands at 0 nothing is hidden, so the other terms see whole views.
    """

    kind: Literal["masked_alignment"] = "masked_alignment"
    masks: MaskConfig = MaskConfig()
    head: ProjectionConfig = ProjectionConfig(hidden=2048, out_dim=256, init="trunc_normal")
    """SimDINOv2 shares that of its coding rate: `head_of=image`."""

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> MaskedAlignment:
        """Make the term.

        Raises:
            ConfigError: when no view is seen by both networks.
        """
        return MaskedAlignment(self, embed_dim, groups)


class MaskedAlignment(Objective):
    """Minus the mean over views of the mean cosine of masked patches, student's against teacher's.

    Wu et al. 2025 (arXiv 2502.10385), SimDINOv2. Nothing in this term keeps patches apart: it needs `coding_rate` or
    another term that does. Masks and weights as in `masked_patches`.
    """

    hides_patches = True

    def __init__(
        self, config: MaskedAlignmentConfig, embed_dim: int, groups: Mapping[str, ViewGroup]
    ) -> None:
        super().__init__()
        self.config, self.embed_dim, self.groups = config, embed_dim, dict(groups)
        self.masked = masked_groups("masked_alignment", groups)
        self.patch_size = 1

    def check_backbone(self, backbone: Backbone) -> None:
        """Masks lie on the backbone's grid."""
        self.patch_size = backbone.patch_size

    def build_heads(self, role: Role) -> ProjectionHead:
        """The projection; the teacher's follows the student's."""
        return self.config.head.build(self.embed_dim)

    def student_masks(self, views: Views) -> dict[str, Bool[Tensor, "batch views patches"]]:
        """Drawn from the images' seeds."""
        return masks_of_views(views, self.groups, self.masked, self.patch_size, self.config.masks)

    def forward(
        self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool
    ) -> Term:
        """Gather masked tokens, project, compare. Without any mask the term is 0 and still differentiable."""
        tokens = masked_tokens(student.features, teacher.features, self.masked)
        online = student.heads(gather_patches(student.features, tokens.student_rows))
        with torch.no_grad():
            target = teacher.heads(gather_patches(teacher.features, tokens.teacher_rows))
        weight = tokens.weight.to(views.device, non_blocking=True)
        return Term(-((online * target).sum(dim=1) * weight).sum(), {})
