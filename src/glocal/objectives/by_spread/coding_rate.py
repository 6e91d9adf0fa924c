"""SimDINO's term: views of an image alike, and the embeddings of all images spread by their coding rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from glocal.distributed import sum_over_processes, world_size
from glocal.models.heads import ProjectionHead
from glocal.objectives.base import Branch, Objective, ObjectiveConfig, Role, Term
from glocal.objectives.by_contrast.projection import ProjectionConfig
from glocal.objectives.view_pairs import flat_pair_weights, largest_views, stack_cls, views_seen_by
from glocal.schedules import Progress, Schedule, value_at
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup


class CodingRateConfig(ObjectiveConfig):
    """Alignment of an image's views and expansion of all images, without prototypes, temperatures and centres."""

    kind: Literal["coding_rate"] = "coding_rate"
    head: ProjectionConfig = ProjectionConfig(hidden=2048, out_dim=256, init="trunc_normal")
    expansion: Annotated[float, Field(ge=0)] | Schedule = 1.0
    """Factor of the coding rate against the alignment; 0 leaves nothing but alignment."""
    distortion: Annotated[float, Field(gt=0)] = 0.05
    """The coding rate's epsilon: noise up to which embeddings are told apart."""
    targets: Literal["student", "teacher"] = "teacher"
    """Whom a view is aligned with: the EMA teacher's views (SimDINO), or the student's own other views, with gradient on
    both sides and no forward pass of the teacher (EMP-SSL)."""
    spread_of: Literal["student", "mean"] = "mean"
    """Whose embeddings are expanded: the student's, or on views that both networks see the mean of the two, which is
    smoother (SimDINO's default); always the student's with `targets=student`."""

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> CodingRate:
        """Make the term.

        Raises:
            ConfigError: when there are no two views to be compared.
        """
        return CodingRate(self, embed_dim, groups)


class CodingRate(Objective):
    """Minus the mean cosine of pairs of views, minus the coding rate of the student's large views.

    Wu et al. 2025, "Simplifying DINO via coding rate regularization" (arXiv 2502.10385); the rate of Ma et al. 2007. With
    p the embeddings' width, n the images of the step and Z (n, p) their unit vectors in one view,

        R = (p + n) / (p n) * 1/2 logdet(I + p / (n epsilon) Z^T Z),     loss = -alignment - expansion * mean over views of R.

    Departure: Z is that of all processes, always, so that n means what it says; the published code sums over one
    process's images by default and divides by all. With `targets=student` it is the total coding rate of EMP-SSL
    (arXiv 2304.03977). Cost: one (p x p) factorisation a view, no logits.
    """

    pair_weight: Float[Tensor, "views targets"]

    def __init__(self, config: CodingRateConfig, embed_dim: int, groups: Mapping[str, ViewGroup]) -> None:
        super().__init__()
        self.config, self.embed_dim = config, embed_dim
        self.views, self.target_views = (views_seen_by(role, groups) for role in ("student", config.targets))
        self.expanded = [self.views.index(view) for view in largest_views(self.views, groups)]
        self.register_buffer(
            "pair_weight", flat_pair_weights(self.target_views, self.views, groups), persistent=False
        )

    @property
    def needs_teacher(self) -> bool:
        """Only for its embeddings as targets."""
        return self.config.targets == "teacher"

    def build_heads(self, role: Role) -> ProjectionHead:
        """The projection; the teacher's follows the student's."""
        return self.config.head.build(self.embed_dim)

    def forward(
        self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool
    ) -> Term:
        """Stack class embeddings, project, align, expand; watched: both parts."""
        online = student.heads(stack_cls(student, self.views))
        targets = online
        if self.needs_teacher:
            with torch.no_grad():
                targets = teacher.heads(stack_cls(teacher, self.target_views))
        with torch.autocast(online.device.type, enabled=False):
            cosines = torch.einsum("bsd,btd->st", online, targets) / len(views)
            alignment = (self.pair_weight * cosines).sum()
            rate = coding_rate(self._spread(online, targets), self.config.distortion)
            loss = -alignment - value_at(self.config.expansion, progress) * rate
        return Term(loss, {"alignment": alignment, "coding_rate": rate} if watch else {})

    def _spread(
        self, online: Float[Tensor, "batch views dim"], targets: Float[Tensor, "batch targets dim"]
    ) -> Float[Tensor, "large batch dim"]:
        """What is expanded, view by view."""
        spread = []
        for number in self.expanded:
            ours, view = online[:, number], self.views[number]
            mixed = self.config.spread_of == "mean" and self.needs_teacher and view in self.target_views
            spread.append((ours + targets[:, self.target_views.index(view)]) / 2 if mixed else ours)
        return torch.stack(spread)


def coding_rate(z: Float[Tensor, "views batch dim"], distortion: float) -> Float[Tensor, ""]:
    """Mean over views of the rate of all processes' embeddings, scaled by (p + n) / (p n).

    >>> import torch
    >>> round(coding_rate(torch.eye(4)[None], 0.5).item(), 4)
    1.0986
    """
    width, images = z.shape[2], z.shape[1] * world_size()
    second_moment = sum_over_processes(z.transpose(1, 2) @ z)
    identity = torch.eye(width, device=z.device)
    # Without the check for a positive diagonal, which would wait for the device: the identity guarantees one.
    factor, _ = torch.linalg.cholesky_ex(identity + width / (images * distortion) * second_moment)
    rate: Tensor = factor.diagonal(dim1=1, dim2=2).log().sum(dim=1).mean()
    return rate * ((width + images) / (width * images))
