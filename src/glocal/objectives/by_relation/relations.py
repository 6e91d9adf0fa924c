"""Relations between patches: how the patches of a place resemble each other, or others, should not depend on the view."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn

from glocal.distributed import all_gather_rows, all_reduce_sum, rank, world_size
from glocal.errors import ConfigError, ModelError
from glocal.models.adaptation import merge_adapters
from glocal.models.backbone import Backbone
from glocal.models.features import Features
from glocal.models.heads import unit_length
from glocal.models.teacher import freeze
from glocal.objectives.base import Branch, Objective, ObjectiveConfig, Role, Term
from glocal.objectives.by_relation.comparisons import (
    centred_kernel_alignment,
    gram_difference,
    order_difference,
)
from glocal.objectives.pair_draw import draw_pairs
from glocal.objectives.patch_pairs import gather_patches, keep_pairs, match_view_groups, refuse_moved_pixels
from glocal.schedules import Progress
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup
from glocal.views.randomness import fold_in, uniforms

_SALT = sum(b"relations")
Temperature = Annotated[float, Field(gt=0)]


class RelationsConfig(ObjectiveConfig):
    """Which relations are compared, with whose, and over how many patches."""

    kind: Literal["relations"] = "relations"
    form: Literal["cka", "gram", "order"] = "cka"
    """`cka`: 1 minus the linear CKA of the patches (PaKA). `gram`: mean squared difference of their cosine similarities
    (Gram anchoring). `order`: which patches of other images they resemble, by cross-entropy (after NeCo)."""
    targets: Literal["teacher", "earlier"] = "teacher"
    """The EMA teacher's patches of the same places in another view; or those of the same view by the weights of the
    run's start (released ones, for example), which cost a forward pass on the views that both networks see."""
    refresh_steps: Annotated[int, Field(ge=1)] | None = None
    """With `targets=earlier`: copy the EMA teacher anew every so many steps; null: never."""
    patches: Annotated[int, Field(ge=3)] = 64
    """Most matched patches of a pair of views that take part, drawn at random: cost grows with their square."""
    references: Annotated[int, Field(ge=1)] = 256
    """For `order`: patches to be resembled, one of every image, of at most so many images of the step."""
    student_temperature: Temperature = 0.1
    """For `order`."""
    teacher_temperature: Temperature = 0.05
    """For `order`."""

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> Relations:
        """Make the term.

        Raises:
            ConfigError: when a group moves pixels after the crop, or no view is seen by both networks where one is
                needed.
        """
        return Relations(self, groups)

    def check_batch(self, key: str, batch_size: int, groups: Mapping[str, ViewGroup]) -> None:
        """`order` asks for patches of other images."""
        if self.form == "order" and batch_size < 2:
            raise ValueError(
                f"{key}.form=order compares with patches of other images, but training.batch_size is {batch_size}. Set "
                f"training.batch_size to at least 2, or {key}.form to cka or gram"
            )


class Corresponding(NamedTuple):
    """Patches of the student and of the target that show the same, row by row, in sets whose relations are compared."""

    student: Float[Tensor, "sets patches dim"]
    target: Float[Tensor, "sets patches dim"]
    exists: Bool[Tensor, "sets patches"]
    image: Int64[Tensor, " sets"]


class Relations(Objective):
    """Mean over pairs of views (or views) of how differently both networks relate an image's patches.

    Three forms, all without a head, so that they suit continuation from trained weights:

    - `cka`: Patch-level Kernel Alignment (PaKA): 1 - CKA of the centred Gram matrices of student and teacher over the
      overlap of two views (Kornblith et al. 2019, arXiv 1905.00414, equation 4 with a linear kernel).
    - `gram`: Gram anchoring (DINOv3, arXiv 2508.10104): mean squared difference of the Gram matrices of unit vectors;
      there of one view with an earlier teacher (`targets=earlier`, `refresh_steps=10000`), here of matched patches, too.
    - `order`: after NeCo (Pariza et al., arXiv 2408.11054), which sorts patches of other images by similarity through
      a differentiable sorting network; here a softmax over the similarities stands for the ranks.

    Departures: at most `patches` matched patches a pair of views; sets of fewer than three patches (two for `gram`, one
    for `order`) say nothing and are left out. With `targets=earlier` a frozen copy of the backbone is part of the state.
    """

    def __init__(self, config: RelationsConfig, groups: Mapping[str, ViewGroup]) -> None:
        super().__init__()
        self.config, self.groups = config, dict(groups)
        self.earlier: Backbone | None = None
        self.compared = [name for name, group in groups.items() if group.seen_by == "both"]
        if config.targets == "teacher":
            refuse_moved_pixels("relations", groups)
        elif not self.compared:
            raise ConfigError(
                "relations with targets=earlier compares views that both networks see, but there is none. Set a "
                "group's seen_by to both, or targets=teacher."
            )

    @property
    def needs_teacher(self) -> bool:
        """Only for its patches as targets; an earlier self takes over its weights, not its features."""
        return self.config.targets == "teacher"

    def check_backbone(self, backbone: Backbone) -> None:
        """Make room for the earlier self."""
        if self.config.targets == "earlier":
            self.earlier = freeze(copy.deepcopy(backbone))

    def build_heads(self, role: Role) -> nn.Module:
        """None: embeddings are compared as they are."""
        return nn.Identity()

    def forward(
        self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool
    ) -> Term:
        """Find what corresponds, compare. Where nothing does the term is 0 and still differentiable."""
        if self.needs_teacher:
            targets: Mapping[str, Features] = teacher.features
            patches = self._matched(student.features, targets, views)
        else:
            targets = self._earlier_features(teacher, views, progress)
            patches = self._same_views(student.features, targets)
        with torch.autocast(views.device.type, enabled=False):
            difference, weight = self._differences(patches, targets, views)
        weights = all_reduce_sum(weight.sum()) / world_size()
        return Term((difference * weight).sum() / weights.clamp_min(1e-6), {})

    def _differences(
        self, patches: Corresponding, targets: Mapping[str, Features], views: Views
    ) -> tuple[Float[Tensor, " sets"], Float[Tensor, " sets"]]:
        """How far both networks are apart in every set, and the weight of the set."""
        config = self.config
        student, target, exists = patches.student.float(), patches.target.float(), patches.exists
        count = exists.sum(dim=1)
        if config.form == "cka":
            return 1.0 - centred_kernel_alignment(student, target, exists), (count >= 3).float()
        if config.form == "gram":
            return gram_difference(student, target, exists), (count >= 2).float()
        references = self._references(targets, views)
        own_image = patches.image[:, None] + rank() * len(views) == torch.arange(
            references.shape[0], device=references.device
        )
        temperatures = (config.student_temperature, config.teacher_temperature)
        return order_difference(student, target, exists, references, own_image, *temperatures), count.float()

    def _matched(
        self, student: Mapping[str, Features], teacher: Mapping[str, Features], views: Views
    ) -> Corresponding:
        """Patches of the same places in two views, in slots of `patches` for every image and pair of views."""
        tokens = match_view_groups(views, self.groups, student, teacher)
        sets, most = len(views) * tokens.view_pairs, self.config.patches
        seeds = fold_in(views.seed[:, None].expand(-1, tokens.view_pairs), torch.arange(tokens.view_pairs))
        drawn, slot = draw_pairs(tokens.image * tokens.view_pairs + tokens.view_pair, seeds.flatten(), most)
        tokens = keep_pairs(tokens, drawn)
        exists = torch.zeros(sets * most, dtype=torch.bool).index_fill(0, slot, True).view(sets, most)
        image = torch.arange(len(views)).repeat_interleave(tokens.view_pairs)
        slot, exists, image = (x.to(views.device, non_blocking=True) for x in (slot, exists, image))
        pairs = tokens.pairs.to(views.device)

        def in_slots(features: Mapping[str, Features], rows: Mapping[str, Tensor], index: Tensor) -> Tensor:
            gathered = gather_patches(features, rows)
            slots = gathered.new_zeros(sets * most, gathered.shape[1])
            return slots.index_copy(0, slot, gathered[index]).view(sets, most, -1)

        return Corresponding(
            in_slots(student, tokens.student_rows, pairs.student),
            in_slots(teacher, tokens.teacher_rows, pairs.teacher),
            exists,
            image,
        )

    def _same_views(self, student: Mapping[str, Features], earlier: Mapping[str, Features]) -> Corresponding:
        """Every patch that the student sees, view by view; views with fewer patches are filled up."""
        most = max(student[name].patches.shape[2] for name in self.compared)
        sides: list[list[Tensor]] = [[], [], [], []]
        for name in self.compared:
            ours, theirs = student[name], earlier[name].patches
            batch, count, patches, dim = ours.patches.shape
            if ours.kept is not None:
                kept = ours.kept.to(theirs.device, non_blocking=True)
                theirs = theirs.gather(2, kept[..., None].expand(-1, -1, -1, dim))
            filled = [
                nn.functional.pad(x.flatten(0, 1), (0, 0, 0, most - patches)) for x in (ours.patches, theirs)
            ]
            exists = (torch.arange(most, device=theirs.device) < patches).expand(batch * count, -1)
            image = torch.arange(batch, device=theirs.device).repeat_interleave(count)
            for side, tensor in zip(sides, (*filled, exists, image), strict=True):
                side.append(tensor)
        return Corresponding(*(torch.cat(side) for side in sides))

    @torch.no_grad()
    def _earlier_features(self, teacher: Branch, views: Views, progress: Progress) -> dict[str, Features]:
        """What the earlier self says of the views that both networks see; it is renewed when its time has come."""
        if self.earlier is None:
            raise ModelError("The earlier self takes its shape from the backbone; call check_backbone first.")
        every = self.config.refresh_steps
        if progress.step == 0 or (every is not None and progress.step % every == 0):
            self.earlier.load_state_dict(merge_adapters(teacher.backbone).state_dict())
        self.earlier.eval()
        features = {}
        for name in self.compared:
            batch = views.groups[name]
            pixels = batch.pixels if batch.teacher_pixels is None else batch.teacher_pixels
            features[name] = self.earlier(pixels.flatten(0, 1)).unflatten(pixels.shape[1])
        return features

    @torch.no_grad()
    def _references(self, targets: Mapping[str, Features], views: Views) -> Float[Tensor, "references dim"]:
        """A unit vector of every image, a patch of its first view drawn by its seed, of the step's first images."""
        patches = next(iter(targets.values())).patches[:, 0]
        drawn = (
            (uniforms(fold_in(views.seed, _SALT), 1) * patches.shape[1])
            .long()
            .clamp(max=patches.shape[1] - 1)
        )
        index = drawn.to(patches.device, non_blocking=True)[..., None].expand(-1, -1, patches.shape[2])
        return all_gather_rows(unit_length(patches.gather(1, index)[:, 0]))[: self.config.references]
