"""The PW-Self reference's loss with its own choices: one head, one centre a token position, a plain mean over tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor, nn

from glocal.distributed import all_reduce_sum
from glocal.errors import ConfigError
from glocal.models.heads import PrototypeHead
from glocal.objectives.base import Branch, Objective, ObjectiveConfig, Role, Term
from glocal.objectives.over_prototypes.cross_entropy import Prototypes, prototype_cross_entropy
from glocal.objectives.over_prototypes.prototype_term import HeadConfig
from glocal.objectives.patch_pairs import (
    MatchedTokens,
    gather_patches,
    match_view_groups,
    refuse_dropped_patches,
    refuse_moved_pixels,
)
from glocal.objectives.view_pairs import Pairs, stack_cls, views_seen_by
from glocal.schedules import Progress, Schedule, value_at
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup


class LocalGlobalReferenceConfig(ObjectiveConfig):
    """The reference's single term over class tokens and matched patches."""

    kind: Literal["local_global_reference"] = "local_global_reference"
    image_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Null: a plain mean over the 1 + M tokens of a pair (the published code). A number: that share for the class
    token, the rest for the mean over patches (an earlier commit used 0.9)."""
    head: HeadConfig = HeadConfig(prototypes=10000)
    student_temperature: Annotated[float, Field(gt=0)] = 0.1
    """Divides the student's logits: lower is sharper."""
    teacher_temperature: float | Schedule = 0.04
    """Divides the teacher's logits, a number or a schedule: lower is sharper, and too low invites collapse to one prototype."""
    centre_momentum: Annotated[float, Field(ge=0, le=1)] = 0.9
    """How much of the centre stays at a step."""

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> LocalGlobalReference:
        """Make the term.

        Raises:
            ConfigError: when the teacher's views differ in size, which per-position centres can't serve.
        """
        return LocalGlobalReference(self, embed_dim, groups)


class LocalGlobalReference(Objective):
    """Loss of the published code (main branch), rule `paper`, from its description.

    Departures without effect on the loss: unmatched student tokens, whose logits the reference computes and drops, are
    not projected. Departure where crops differ by image: the mean is taken per image and pair, then over both, as the
    reference's per-image branch does; with shared crops both are the same.
    """

    centre: Tensor
    seen: Tensor

    def __init__(
        self, config: LocalGlobalReferenceConfig, embed_dim: int, groups: Mapping[str, ViewGroup]
    ) -> None:
        super().__init__()
        self.config, self.embed_dim, self.groups = config, embed_dim, dict(groups)
        refuse_moved_pixels("local_global_reference", groups)
        self.teacher_views, self.student_views = (
            views_seen_by("teacher", groups),
            views_seen_by("student", groups),
        )
        refuse_dropped_patches("local_global_reference", groups)
        sizes = {groups[name].height_width for name, _ in self.teacher_views}
        changing = any(isinstance(groups[name].size, Schedule) for name, _ in self.teacher_views)
        if len(sizes) != 1 or changing:
            raise ConfigError(
                f"local_global_reference keeps a centre for each position; teacher views of sizes {sorted(sizes)}{', changing,' if changing else ''} have no common positions."
            )
        # In the order in which `match_view_groups` numbers view pairs: by teacher group, student group, then views.
        self.table = [
            (self.student_views.index((name_s, s)), self.teacher_views.index((name_t, t)))
            for name_t in dict.fromkeys(name for name, _ in self.teacher_views)
            for name_s in dict.fromkeys(name for name, _ in self.student_views)
            for t in range(groups[name_t].count)
            for s in range(groups[name_s].count)
            if (name_t, t) != (name_s, s)
        ]
        # Grown to (1 + patches, prototypes) at the first step, when the grid is known; lazily so that any size works.
        self.register_buffer("centre", torch.zeros(1, config.head.prototypes))
        self.register_buffer("seen", torch.zeros(1, config.head.prototypes), persistent=False)
        self._count = 0

    def build_heads(self, role: Role) -> PrototypeHead:
        """One head for class tokens and patches."""
        return self.config.head.build(self.embed_dim)

    def frozen(self, heads: nn.Module, progress: Progress) -> Iterator[nn.Parameter]:
        """The prototypes, during the first epochs."""
        assert isinstance(heads, PrototypeHead)
        if self.config.head.frozen(progress):
            yield from heads.prototype_parameters()

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        self.centre = self.centre.new_zeros(state[f"{prefix}centre"].shape)
        super()._load_from_state_dict(state, prefix, *rest)

    def forward(
        self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool
    ) -> Term:
        """Every teacher token is projected (its position's centre needs it), every used student token once."""
        assert isinstance(student.heads, PrototypeHead) and isinstance(teacher.heads, PrototypeHead)
        matched = match_view_groups(views, self.groups, student.features, teacher.features, rule="paper")
        batch = len(views)
        cls = stack_cls(student, self.student_views)
        student_tokens = torch.cat(
            [cls.flatten(0, 1), gather_patches(student.features, matched.student_rows)]
        )
        online = Prototypes(
            student.heads.bottleneck(student_tokens),
            student.heads.prototypes(),
            self.config.student_temperature,
        )
        with torch.no_grad():
            position, bottleneck = self._teacher_tokens(teacher)
            target = Prototypes(
                bottleneck, teacher.heads.prototypes(), value_at(self.config.teacher_temperature, progress)
            )
            self._note(bottleneck, position, target.prototypes)
        patches = matched.pairs._replace(teacher=self._row_of_all(teacher, matched)[matched.pairs.teacher])
        pairs = self._pairs(patches, matched.image, matched.view_pair, batch).to(cls.device)
        return Term(prototype_cross_entropy(online, target, self.centre, pairs, position), {})

    def _teacher_tokens(self, teacher: Branch) -> tuple[Int64[Tensor, " tokens"], Tensor]:
        """Bottlenecks of all teacher tokens, class tokens of all views first, and each one's position (0: class)."""
        cls = stack_cls(teacher, self.teacher_views).flatten(0, 1)
        patches = torch.cat([f.patches.flatten(0, 2) for f in teacher.features.values()])
        count = next(iter(teacher.features.values())).patches.shape[2]
        if self.centre.shape[0] == 1:
            self.centre = self.centre.new_zeros(1 + count, self.centre.shape[1])
        position = torch.cat(
            [
                cls.new_zeros(cls.shape[0]).long(),
                torch.arange(1, count + 1, device=cls.device).repeat(patches.shape[0] // count),
            ]
        )
        return position, teacher.heads.bottleneck(torch.cat([cls, patches]))  # type: ignore[operator]

    def _row_of_all(self, teacher: Branch, matched: MatchedTokens) -> Int64[Tensor, " teacher_tokens"]:
        """Where each matched token of the teacher stands among all patches of all its groups."""
        sizes = [0] + [f.patches.shape[:-1].numel() for f in teacher.features.values()]
        starts = itertools.accumulate(sizes)
        return torch.cat([r + s for r, s in zip(matched.teacher_rows.values(), starts, strict=False)])

    def _pairs(self, patches: Pairs, image: Tensor, view_pair: Tensor, batch: int) -> Pairs:
        """Class pairs and patch pairs with the weights of the configured mean."""
        many = len(self.table)
        s, t = torch.tensor(self.table).T
        images = torch.arange(batch)[:, None]
        slot = image * many + view_pair
        count = torch.bincount(slot, minlength=batch * many)
        share = self.config.image_share
        cls_weight = 1.0 / (1 + count) if share is None else torch.full(count.shape, share)
        patch_weight = 1.0 / (1 + count) if share is None else (1.0 - share) / count.clamp_min(1)
        # Of the teacher all tokens are projected: its patches stand behind all its class tokens.
        student = torch.cat(
            [
                (images * len(self.student_views) + s).flatten(),
                patches.student + batch * len(self.student_views),
            ]
        )
        teacher = torch.cat(
            [
                (images * len(self.teacher_views) + t).flatten(),
                patches.teacher + batch * len(self.teacher_views),
            ]
        )
        weight = torch.cat([cls_weight, patch_weight[slot]]) / (batch * many)
        return Pairs(student, teacher, weight.float())

    def _note(self, bottleneck: Tensor, position: Tensor, prototypes: Tensor) -> None:
        """Add this batch's mean logit at every position, linear in the tokens."""
        positions = self.centre.shape[0]
        sums = bottleneck.new_zeros(positions, bottleneck.shape[1], dtype=torch.float32).index_add_(
            0, position, bottleneck.float()
        )
        samples = torch.bincount(position, minlength=positions)
        with torch.autocast(sums.device.type, enabled=False):
            mean = (sums / samples[:, None]) @ prototypes.float().T
        self.seen = mean if self._count == 0 else self.seen + mean
        self._count += 1

    @torch.no_grad()
    def finish_step(self) -> None:
        """Move every position's centre towards its mean logits over micro-batches and processes."""
        if self._count:
            counted = all_reduce_sum(
                torch.cat([self.seen.flatten(), self.seen.new_tensor([float(self._count)])])
            )
            self.centre.lerp_(
                (counted[:-1] / counted[-1]).view_as(self.centre), 1.0 - self.config.centre_momentum
            )
            self.seen.zero_()
            self._count = 0
