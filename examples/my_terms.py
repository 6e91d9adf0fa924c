"""A term of one's own: `objectives.mine=examples/my_terms.py:Agreement`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from glocal.models.heads import unit_length
from glocal.objectives.base import Branch, Objective, ObjectiveConfig, Role, Term
from glocal.objectives.view_pairs import stack_cls, views_seen_by
from glocal.schedules import Progress
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup


class Agreement(ObjectiveConfig):
    """The student's image embedding points where the teacher's of the same view does."""

    margin: float = 0.0
    """Cosines above one minus this cost nothing."""

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> AgreementTerm:
        """Make the term for a backbone of this width and these groups of views."""
        return AgreementTerm(self, groups)


class AgreementTerm(Objective):
    """Mean over views that the teacher sees of one minus the cosine."""

    def __init__(self, config: Agreement, groups: Mapping[str, ViewGroup]) -> None:
        super().__init__()
        self.config, self.views = config, views_seen_by("teacher", groups)

    def build_heads(self, role: Role) -> nn.Module:
        """None: the embeddings themselves are compared."""
        return nn.Identity()

    def forward(
        self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool
    ) -> Term:
        """Compare class embeddings; what is watched is logged and changes nothing."""
        online, target = (unit_length(stack_cls(branch, self.views)) for branch in (student, teacher))
        cosine = (online * target).sum(dim=-1)
        loss = torch.relu(1.0 - self.config.margin - cosine).mean()
        return Term(loss, {"cosine": cosine.mean()} if watch else {})
