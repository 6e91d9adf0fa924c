"""InfoNCE of matched patches: what shows the same place in two views is told from other places and other images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from glocal.distributed import all_reduce_sum, gather_rows, rank, world_size
from glocal.models.heads import ProjectionHead
from glocal.objectives.base import Branch, Objective, ObjectiveConfig, Role, Term
from glocal.objectives.by_contrast.projection import ProjectionConfig
from glocal.objectives.by_contrast.step_info_nce import is_nearest, step_info_nce
from glocal.objectives.pair_draw import draw_pairs
from glocal.objectives.patch_pairs import (
    MatchedTokens,
    gather_patches,
    keep_pairs,
    match_view_groups,
    refuse_moved_pixels,
)
from glocal.schedules import Progress, Schedule, value_at
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup


class MatchedContrastConfig(ObjectiveConfig):
    """Contrast of matched patches: how many pairs an image gives, and from what each is told apart."""

    kind: Literal["matched_contrast"] = "matched_contrast"
    head: ProjectionConfig = ProjectionConfig(layers=2)
    temperature: Annotated[float, Field(gt=0)] | Schedule = 0.1
    """Divides the similarities: lower weighs the hardest negatives more."""
    pairs: Annotated[int, Field(ge=1)] = 8
    """Most pairs an image gives a step, drawn from all matches of all its pairs of views."""
    images: Annotated[int, Field(ge=1)] | None = 8
    """A pair is told from the pairs of this many consecutive images, its own among them; null: of all in the step."""
    targets: Literal["student", "teacher"] = "student"
    """Whether the second view is the student's too (the contrast is then symmetric) or the EMA teacher's."""

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> MatchedContrast:
        """Make the term.

        Raises:
            ConfigError: when a group moves pixels after the crop.
        """
        return MatchedContrast(self, embed_dim, groups)


class _Side(NamedTuple):
    """One side of the pairs in slots of `pairs` an image: unit vectors, and a number for each patch (-1: no pair)."""

    vectors: Float[Tensor, "batch pairs dim"]
    patch: Int64[Tensor, "batch pairs"]


class MatchedContrast(Objective):
    """Mean over drawn pairs of matched patches of InfoNCE against the other pairs' patches.

    The contrast of pixels of Xie et al. 2021 (PixPro, arXiv 2011.10043, section 3.2) and Wang et al. 2021 (DenseCL,
    arXiv 2011.09157, equation 2), with pairs from the views' geometry (rule `center`) as in Local-Global. Departures
    from both: a few pairs an image; negatives are patches of the same step, other places of the same image among them
    (the hard ones), instead of a queue of pooled images. A patch that is the positive of a pair is never its negative.

    Cost: the head on 2 x `pairs` tokens an image, and (pairs x images)^2 products a chunk.

    With several processes `images` counts within each: the loss equals that of one process when the images of a
    process are a multiple of it, or with `images=null`.
    """

    def __init__(
        self, config: MatchedContrastConfig, embed_dim: int, groups: Mapping[str, ViewGroup]
    ) -> None:
        super().__init__()
        self.config, self.embed_dim, self.groups = config, embed_dim, dict(groups)
        refuse_moved_pixels("matched_contrast", groups)

    @property
    def needs_teacher(self) -> bool:
        """Only for its patches as targets."""
        return self.config.targets == "teacher"

    def build_heads(self, role: Role) -> ProjectionHead:
        """The projection; the teacher's follows the student's and serves as target or for another term."""
        return self.config.head.build(self.embed_dim)

    def forward(
        self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool
    ) -> Term:
        """Match, draw, gather, project, contrast. Without any match the term is 0 and still differentiable."""
        second = teacher if self.needs_teacher else student
        tokens = match_view_groups(views, self.groups, student.features, second.features)
        drawn, slot = draw_pairs(tokens.image, views.seed, self.config.pairs)
        tokens = keep_pairs(tokens, drawn)
        projected = self._projected(student, second, tokens)
        anchors, keys = (
            self._in_slots(vectors, token, slot, len(views))
            for vectors, token in zip(projected, (tokens.pairs.student, tokens.pairs.teacher), strict=True)
        )
        count = torch.tensor(float(drawn.numel())).to(views.device, non_blocking=True)
        # The mean runs over the pairs of all processes, so that their number does not change the loss.
        mean_count = all_reduce_sum(count) / world_size()
        share = 1.0 / mean_count.clamp_min(1.0)
        temperature = value_at(self.config.temperature, progress)
        loss, accuracy = self._contrast(anchors, keys, temperature)
        if not self.needs_teacher:
            back, back_accuracy = self._contrast(keys, anchors, temperature)
            loss, accuracy = (loss + back) / 2, (accuracy + back_accuracy) / 2
        if not watch:
            return Term(loss * share, {})
        similarity = (anchors.vectors * keys.vectors).sum() * share
        scalars = {"positive_similarity": similarity, "accuracy": accuracy * share}
        return Term(loss * share, scalars | {"pairs_an_image": mean_count / len(views)})

    def _projected(self, student: Branch, second: Branch, tokens: MatchedTokens) -> Sequence[Tensor]:
        """The tokens of both sides, each (tokens, out_dim), through the head of whoever they are of."""
        if self.needs_teacher:
            online: Tensor = student.heads(gather_patches(student.features, tokens.student_rows))
            with torch.no_grad():
                return online, second.heads(gather_patches(second.features, tokens.teacher_rows))
        # Both are the student's: one gathering, since the backward of each writes a gradient as large as all patches.
        sides = (tokens.student_rows, tokens.teacher_rows)
        rows = {name: torch.cat([side[name] for side in sides]) for name in tokens.student_rows}
        together: Tensor = student.heads(gather_patches(student.features, rows))
        pieces = torch.split(together, [side[name].numel() for name in rows for side in sides])
        return torch.cat(pieces[0::2]), torch.cat(pieces[1::2])

    def _in_slots(
        self,
        projected: Float[Tensor, "tokens dim"],
        token: Int64[Tensor, " drawn"],
        slot: Int64[Tensor, " drawn"],
        batch: int,
    ) -> _Side:
        """Put one side's tokens into their slots; patches are numbered apart over processes."""
        slots, device = batch * self.config.pairs, projected.device
        patch = torch.full((slots,), -1).index_copy(0, slot, token + rank() * slots)
        token, slot, patch = (x.to(device, non_blocking=True) for x in (token, slot, patch))
        vectors = projected.new_zeros(slots, projected.shape[1]).index_copy(0, slot, projected[token])
        return _Side(vectors.unflatten(0, (batch, -1)), patch.unflatten(0, (batch, -1)))

    def _contrast(
        self, anchors: _Side, keys: _Side, temperature: float
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Sums over pairs of InfoNCE and of hits: anchors of this process among the keys of their chunks."""
        if self.config.images is None:
            first = rank() * anchors.patch.numel()
            anchors = _Side(anchors.vectors.flatten(0, 1)[None], anchors.patch.flatten()[None])
            keys = _Side(
                gather_rows(keys.vectors).flatten(0, 1)[None], gather_rows(keys.patch).flatten()[None]
            )
        else:
            first = 0
            anchors, keys = (_in_chunks(side, self.config.images) for side in (anchors, keys))
        anchor_rows = slice(first, first + anchors.patch.shape[1])
        same = keys.patch[:, anchor_rows, None] == keys.patch[:, None, :]
        with torch.autocast(anchors.vectors.device.type, enabled=False):
            logits = anchors.vectors @ keys.vectors.transpose(1, 2) / temperature
            positive = (anchors.vectors * keys.vectors[:, anchor_rows]).sum(
                dim=-1, keepdim=True
            ) / temperature
            no_negative = same | (keys.patch < 0)[:, None]
            terms = step_info_nce(logits, no_negative, positive)[..., 0]
            hits = is_nearest(logits, no_negative, positive)[..., 0]
        exists: Bool[Tensor, "chunks pairs"] = anchors.patch >= 0
        return (terms * exists).sum(), (hits & exists).float().sum()


def _in_chunks(side: _Side, images: int) -> _Side:
    """The slots of `images` images together; the last chunk is filled up with images that have no pair."""
    batch, pairs, dim = side.vectors.shape
    chunks = -(-batch // images)
    missing = chunks * images - batch
    vectors = torch.cat([side.vectors, side.vectors.new_zeros(missing, pairs, dim)])
    patch = torch.cat([side.patch, side.patch.new_full((missing, pairs), -1)])
    return _Side(vectors.view(chunks, images * pairs, dim), patch.view(chunks, images * pairs))
