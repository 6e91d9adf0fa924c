"""iBOT: of the patches that it can't see, the student predicts what the teacher, who sees them, says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from glocal.models.backbone import Backbone
from glocal.objectives.base import Branch, Term
from glocal.objectives.masks import MaskConfig, masked_groups, masked_tokens, masks_of_views
from glocal.objectives.over_prototypes.cross_entropy import prototype_cross_entropy
from glocal.objectives.over_prototypes.prototype_term import (
    HeadConfig,
    PrototypeTerm,
    PrototypeTermConfig,
    watch_targets,
)
from glocal.objectives.patch_pairs import gather_patches
from glocal.objectives.view_pairs import Pairs
from glocal.schedules import Progress
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup


class MaskedPatchesConfig(PrototypeTermConfig):
    """iBOT's masked image modelling: what is hidden, and over which prototypes it is predicted.

    While `weight` is a schedule that stands at 0 nothing is hidden, so the other terms see whole views.
    """

    kind: Literal["masked_patches"] = "masked_patches"
    masks: MaskConfig = MaskConfig()
    head: HeadConfig = HeadConfig(hidden=2048, layers=3, bottleneck=256, prototypes=8192)
    """iBOT shares the image term's: `head_of=image`."""

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> MaskedPatches:
        """Make the term.

        Raises:
            ConfigError: when no view is seen by both networks.
        """
        return MaskedPatches(self, embed_dim, groups)


class MaskedPatches(PrototypeTerm):
    """Mean over views of the mean over masked patches of the cross-entropy to the teacher's distribution there.

    Zhou et al. 2022, "Image BERT pre-training with online tokenizer" (arXiv 2111.07832), equation 2, with DINOv2's
    weights: a masked token counts one over its view's masked tokens, a view without mask counts as 0. In views that
    both networks see the student gets a learnt vector for masked patches, behind the patch embedding and before the
    positions; its image embedding, which other terms use, is that of the masked view. Departures: the centre follows
    the masked tokens (DINOv2 balances these, iBOT centres over all); every view draws its own coin, where DINOv2 masks
    exactly half of a batch; only masked tokens pass through the head.
    """

    hides_patches = True

    def __init__(self, config: MaskedPatchesConfig, embed_dim: int, groups: Mapping[str, ViewGroup]) -> None:
        super().__init__(config, embed_dim)
        self.config, self.groups = config, dict(groups)
        self.masked = masked_groups("masked_patches", groups)
        self.patch_size = 1

    def check_backbone(self, backbone: Backbone) -> None:
        """Masks lie on the backbone's grid."""
        self.patch_size = backbone.patch_size

    def student_masks(self, views: Views) -> dict[str, Bool[Tensor, "batch views patches"]]:
        """Drawn from the images' seeds."""
        return masks_of_views(views, self.groups, self.masked, self.patch_size, self.config.masks)

    def forward(
        self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool
    ) -> Term:
        """Gather masked tokens, project, compare. Without any mask the term is 0 and still differentiable."""
        tokens = masked_tokens(student.features, teacher.features, self.masked)
        online = self.online(student, gather_patches(student.features, tokens.student_rows))
        target, centre = self.target(teacher, gather_patches(teacher.features, tokens.teacher_rows), progress)
        index = torch.arange(tokens.weight.numel())
        loss = prototype_cross_entropy(
            online, target, centre, Pairs(index, index, tokens.weight).to(views.device)
        )
        if not watch:
            return Term(loss, {})
        patches = sum(student.features[name].patches.shape[:-1].numel() for name in self.masked)
        share = torch.tensor(index.numel() / patches, device=views.device)
        return Term(loss, {"masked_share": share} | watch_targets(target, centre))
