"""Local-Global and PW-Self: a student patch predicts what the teacher says of the same place in another view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from glocal.distributed import all_reduce_sum, world_size
from glocal.objectives.base import Branch, Term
from glocal.objectives.over_prototypes.cross_entropy import Prototypes, prototype_cross_entropy
from glocal.objectives.over_prototypes.prototype_term import (
    HeadConfig,
    PrototypeTerm,
    PrototypeTermConfig,
    watch_targets,
)
from glocal.objectives.patch_pairs import gather_patches, match_view_groups, refuse_moved_pixels
from glocal.schedules import Progress
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup


class MatchedPatchesConfig(PrototypeTermConfig):
    """The patch-level term: which patches are matched, and how the student learns from its match."""

    kind: Literal["matched_patches"] = "matched_patches"
    rule: Literal["center", "paper"] = "center"
    """`center`: the teacher patch that holds the student patch's centre. `paper`: the reference's rounding rule."""
    match_weight: Literal["none", "overlap"] = "none"
    """Weight of a pair: 1, or the area both patches share over the smaller one's."""
    max_scale_ratio: Annotated[float, Field(ge=1)] | None = None
    """Drop pairs whose patches differ in height or width by more than this factor."""
    bilinear: bool = False
    """Read the teacher's distribution at the student's exact position, from up to four patches (rule `center`)."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of student patches that take part in a step, drawn at random: the term's cost falls with it."""
    head: HeadConfig = HeadConfig(hidden=512, layers=3, bottleneck=128, prototypes=4096)

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> MatchedPatches:
        """Make the term.

        Raises:
            ConfigError: when a group moves pixels after the crop.
        """
        return MatchedPatches(self, embed_dim, groups)


class MatchedPatches(PrototypeTerm):
    """Mean over matched patches of the cross-entropy from the teacher's to the student's prototype distribution.

    Javidani et al. (arXiv 2310.18651), the patch-level loss. Departures from the reference: boxes are the images' own,
    not a batch's; image and patch terms are two means with weights of their own, where the reference's plain mean gives
    the class token some 4 % at patch 16; patches have a head and a centre of their own; only matched tokens pass
    through the head; the rule is `center` by default. `local-global-reference` keeps all of the reference's choices.
    """

    def __init__(self, config: MatchedPatchesConfig, embed_dim: int, groups: Mapping[str, ViewGroup]) -> None:
        super().__init__(config, embed_dim)
        self.config, self.groups = config, dict(groups)
        refuse_moved_pixels("matched_patches", groups)

    def forward(
        self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool
    ) -> Term:
        """Match, gather, project, compare. Without any match the term is 0 and still differentiable."""
        config = self.config
        tokens = match_view_groups(
            views, self.groups, student.features, teacher.features, rule=config.rule, weight=config.match_weight,
            max_scale_ratio=config.max_scale_ratio, bilinear=config.bilinear, share=config.share,
        )  # fmt: skip
        device = views.device
        online = self.online(student, gather_patches(student.features, tokens.student_rows))
        target, centre = self.target(teacher, gather_patches(teacher.features, tokens.teacher_rows), progress)
        # The mean runs over the matches of all processes, so that their number does not change the loss.
        matches = all_reduce_sum(tokens.pairs.weight.sum().to(device, non_blocking=True)) / world_size()
        loss = prototype_cross_entropy(online, target, centre, tokens.pairs.to(device)) / matches.clamp_min(
            1e-6
        )
        return Term(loss, self._scalars(student, tokens.student_rows, target, centre) if watch else {})

    def _scalars(
        self, student: Branch, rows: Mapping[str, Tensor], target: Prototypes, centre: Tensor
    ) -> dict[str, Tensor]:
        patches = sum(f.patches.shape[:-1].numel() for f in student.features.values())
        matched = sum(r.numel() for r in rows.values())
        return {"matched_share": torch.tensor(matched / patches, device=centre.device)} | watch_targets(
            target, centre
        )
