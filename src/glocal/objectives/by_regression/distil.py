"""Distillation from a frozen teacher: the student's embeddings, projected, come close to a larger model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from glocal.distributed import all_reduce_sum, world_size
from glocal.errors import ConfigError
from glocal.models.heads import unit_length
from glocal.objectives.base import Branch, Objective, ObjectiveConfig, Role, Term
from glocal.objectives.patch_pairs import gather_patches, match_view_groups, refuse_moved_pixels
from glocal.objectives.view_pairs import Pairs
from glocal.schedules import Progress
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup

# Pairs whose targets are gathered at once: (pairs x teacher width) numbers are never all held.
_PORTION = 16_384


class DistilConfig(ObjectiveConfig):
    """How the student is compared with `teacher.frozen`."""

    kind: Literal["distil"] = "distil"
    distance: Literal["cosine", "smooth_l1"] = "cosine"
    """`cosine`: 1 - cosine similarity. `smooth_l1`: mean Huber distance (threshold 1) to the teacher's embedding scaled to
    mean 0 and deviation 1, as in data2vec."""
    patch_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the matched patches beside the image's embedding; 0 leaves them out."""
    bilinear: bool = True
    """Read the teacher between its patches, at the student patch's centre, which suits other patch sizes; false: the one
    teacher patch that holds the centre."""

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> Distil:
        """Make the term.

        Raises:
            ConfigError: when patches are matched and a group moves pixels after the crop.
        """
        return Distil(self, embed_dim, groups)


class Projections(nn.Module):
    """From the student's width to the teacher's, apart for images and patches."""

    def __init__(self, embed_dim: int, target_dim: int, patches: bool) -> None:
        super().__init__()
        self.image = nn.Linear(embed_dim, target_dim)
        self.patch = nn.Linear(embed_dim, target_dim) if patches else None


class Distil(Objective):
    """Every view of the student predicts what the frozen teacher says of the same image, and of the same places.

    image: mean over the student's views of d(P_i s_cls, mean over the teacher's views of t_cls).
    patches: mean over (teacher view, student patch) that show the same place of d(P_p s, t), the view itself included,
    where t are the teacher's patches at that place.

    Embeddings of the teacher are scaled first (unit length, or mean 0 and deviation 1), so that its scale does not
    matter. With cosine the distance to a mean of targets is the mean of the distances; with smooth_l1 a patch that
    several teacher views show is compared with their mean. After Hinton et al. 2015 (arXiv 1503.02531) with embeddings
    for logits, as in feature distillation (FitNets, arXiv 1412.6550: a learnt regressor between widths).
    """

    def __init__(self, config: DistilConfig, embed_dim: int, groups: Mapping[str, ViewGroup]) -> None:
        super().__init__()
        self.config, self.embed_dim, self.groups = config, embed_dim, dict(groups)
        self.target_dim: int | None = None
        if config.patch_weight:
            refuse_moved_pixels("distil", groups)

    @property
    def needs_teacher(self) -> bool:
        """The moving average is not asked."""
        return False

    @property
    def needs_frozen(self) -> bool:
        """Its targets are the frozen teacher's."""
        return True

    def meet_frozen(self, embed_dim: int | None) -> None:
        """Learn how wide the targets are."""
        if embed_dim is None:
            raise ConfigError(
                "The term 'distil' learns from a frozen model, but none is named. Set teacher.frozen=MODEL (anything that "
                "glocal.load reads), or leave the term out."
            )
        self.target_dim = embed_dim

    def build_heads(self, role: Role) -> nn.Module:
        """The student's projections; the teacher's embeddings are taken as they are."""
        if role == "teacher":
            return nn.Identity()
        assert self.target_dim is not None, "meet_frozen comes before build_heads"
        return Projections(self.embed_dim, self.target_dim, self.config.patch_weight > 0)

    def forward(
        self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool
    ) -> Term:
        """Project, and compare with the frozen teacher's features. Without any match the patches' part is 0."""
        heads = student.heads
        assert isinstance(heads, Projections)
        projected = heads.image(torch.cat([f.cls for f in student.features.values()], dim=1))
        seen = torch.cat([self._scaled(f.cls) for f in teacher.features.values()], dim=1)
        image = self._distance(projected, seen.mean(dim=1, keepdim=True).expand_as(projected)).mean()
        if heads.patch is None:
            return Term(image, {"image": image.detach()})
        patch = self._patches(heads.patch, student, teacher, views)
        loss = image + self.config.patch_weight * patch
        return Term(loss, {"image": image.detach(), "patch": patch.detach()})

    def _patches(self, head: nn.Module, student: Branch, teacher: Branch, views: Views) -> Float[Tensor, ""]:
        tokens = match_view_groups(
            views,
            self.groups,
            student.features,
            teacher.features,
            bilinear=self.config.bilinear,
            same_view=True,
        )
        projected = head(gather_patches(student.features, tokens.student_rows))
        pairs = tokens.pairs.to(views.device)
        targets = self._scaled(gather_patches(teacher.features, tokens.teacher_rows))
        mean, weight = mean_targets(targets, pairs, projected.shape[0])
        # The mean runs over the matches of all processes, so that their number does not change the loss.
        share = world_size() / all_reduce_sum(weight.sum()).clamp_min(1e-6)
        return (self._distance(projected, mean) * weight).sum() * share

    def _scaled(self, targets: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        if self.config.distance == "cosine":
            return unit_length(targets)
        return F.layer_norm(targets.float(), targets.shape[-1:])

    def _distance(
        self, projected: Float[Tensor, "*batch dim"], target: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch"]:
        if self.config.distance == "cosine":
            return 1.0 - (unit_length(projected) * target).sum(dim=-1)
        return F.smooth_l1_loss(projected.float(), target, reduction="none").mean(dim=-1)


def mean_targets(
    targets: Float[Tensor, "teacher_tokens dim"], pairs: Pairs, count: int
) -> tuple[Float[Tensor, "student_tokens dim"], Float[Tensor, " student_tokens"]]:
    """The weighted mean of every student token's targets, and its weight: in how many teacher views it is seen."""
    total = targets.new_zeros(count, targets.shape[1])
    weight = targets.new_zeros(count)
    for start in range(0, pairs.student.numel(), _PORTION):
        rows = slice(start, start + _PORTION)
        index: Int64[Tensor, " portion"] = pairs.student[rows]
        share = pairs.weight[rows].to(targets.dtype)
        total.index_add_(0, index, targets[pairs.teacher[rows]] * share[:, None])
        weight.index_add_(0, index, share)
    return total / weight.clamp_min(1e-6)[:, None], weight
