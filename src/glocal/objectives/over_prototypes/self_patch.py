"""SelfPatch: a student patch predicts what the teacher says of the most similar patches around the same position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from glocal.errors import ConfigError, ModelError
from glocal.matching.similar_patches import Border, SimilarPatches, similar_patches
from glocal.models.aggregator import Aggregator, KeysValues
from glocal.models.backbone import Backbone
from glocal.models.features import Features
from glocal.models.heads import PrototypeHead
from glocal.models.initialisation import initialise
from glocal.objectives.base import Branch, Role, Term
from glocal.objectives.over_prototypes.cross_entropy import Prototypes, prototype_cross_entropy
from glocal.objectives.over_prototypes.prototype_term import (
    HeadConfig,
    PrototypeTerm,
    PrototypeTermConfig,
    TeacherCentre,
    watch_targets,
)
from glocal.objectives.over_prototypes.self_patch_positives import taking_part, weighted_mean, wrapped
from glocal.objectives.patch_pairs import refuse_dropped_patches, refuse_moved_student
from glocal.objectives.view_pairs import Pairs, pair_table, repeat_over_batch
from glocal.schedules import Progress, Schedule
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup
from glocal.views.randomness import fold_in

_SALT = sum(b"self_patch")


class SelfPatchConfig(PrototypeTermConfig):
    """The term of patches and their neighbours: who the neighbours are, how they are summed up, what is compared."""

    kind: Literal["self_patch"] = "self_patch"
    weight: float | Schedule = 0.1
    aggregation: Literal["mean", "class_attention", "own_attention"] = "mean"
    """How the teacher sums up a patch's positives. `mean`: their mean after the final norm, weighted by similarity; any
    backbone. `class_attention`: the backbone's own class attention, which only an image-level term trains (the
    reference; needs backbone.pooling=class_attention). `own_attention`: a class attention of this term's own beside a
    class token, which this term trains by its image query."""
    k: Annotated[int, Field(ge=1)] = 4
    """Positives of a patch, the most similar of its window."""
    window: Annotated[int, Field(ge=1)] = 3
    """Side in patches of the square around a patch in which positives are sought; odd."""
    border: Border = "clip"
    """`clip`: only true neighbours, so fewer than k in a corner. `torus`: positions modulo the grid (the reference)."""
    include_self: bool = False
    """Whether a patch may be its own positive."""
    match_on: Literal["raw", "normed"] = "raw"
    """Similarity of the teacher's tokens before (the reference) or after its final norm."""
    views: Literal["both", "all"] = "both"
    """`both`: views that both networks see anyway. `all`: every student view; the teacher is run, for this term, on
    those that it would not see otherwise (the reference, at 73 % more teacher tokens with DINO's crops)."""
    average: Literal["token", "view"] = "token"
    """Every patch counts alike, or every view (the reference: small views have few patches that weigh much)."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each view's patches that take part in a step, drawn at random: the term's cost falls with it."""
    head: HeadConfig = HeadConfig(hidden=512, bottleneck=128, prototypes=4096)

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> SelfPatch:
        """Make the term.

        Raises:
            ConfigError: when no view suits, when an operation moves the student's pixels only, or when heads with an
                aggregator are to be another term's.
        """
        return SelfPatch(self, embed_dim, groups)


class _Chosen(NamedTuple):
    """One group as the teacher sees it.

    `patch` names the patches that take part (None: all) by their number in the grid, `row` where they stand among those
    that the student sees; `contexts` are the keys and values that local and image queries share.
    """

    features: Features
    patch: Int64[Tensor, "views chosen"] | None
    row: Int64[Tensor, "views chosen"] | None
    positives: SimilarPatches
    contexts: list[KeysValues] | None


class SelfPatch(PrototypeTerm):
    """Mean over patches of the cross-entropy from the teacher's summed-up neighbourhood to the student's patch.

    Yun et al. 2022, "Patch-level representation learning for self-supervised vision transformers", section 3. Student
    and teacher see the same view; position i learns from the teacher's k most similar patches around position i. With
    `class_attention` and the options of `selfpatch-reference` it is the published code's term. Departures by default:
    true neighbours only, views that the teacher sees anyway, a smaller head, and, since the backbone has a class token,
    no aggregation module: the reference's is trained by nothing but the image-level loss it pools for, so beside a
    class token it would stay random. `mean` needs no training and its sum lies where the student's patches lie;
    `own_attention` keeps the module and trains it in the way of the reference, by its image query: the student's
    summary of a view predicts the teacher's of every other view, over this term's prototypes and with a centre of their
    own. Gradients of that loss stop at the patches, so on the backbone this term is always the patch loss alone.
    """

    def __init__(self, config: SelfPatchConfig, embed_dim: int, groups: Mapping[str, ViewGroup]) -> None:
        super().__init__(config, embed_dim)
        self.config = config
        self.groups = _same_views(config, groups)
        self.num_heads: int | None = None
        self.summary_views: list[tuple[str, int]] = []
        self.summary_pairs: list[tuple[int, int, float]] = []
        self.summary_centre: TeacherCentre | None = None
        if config.aggregation == "own_attention":
            if config.head_of is not None:
                raise ConfigError(
                    f"head_of is '{config.head_of}', but with aggregation=own_attention the term's heads hold its "
                    "class attention and must be its own. Leave head_of out, or set aggregation=mean."
                )
            self.summary_views = [
                (name, i) for name, group in self.groups.items() for i in range(group.count)
            ]
            self.summary_pairs = pair_table(self.summary_views, self.summary_views, groups, "flat")
            self.summary_centre = TeacherCentre(config.head.prototypes, config.centring)

    def check_backbone(self, backbone: Backbone) -> None:
        """Try matching on the grid of every group, and see that the class attention asked for is there.

        Raises:
            ConfigError: for a backbone without patch tokens or class attention, a window larger than a view's grid, or
                a k larger than the window has candidates.
        """
        config, side = self.config, getattr(backbone, "patch_size", None)
        if side is None:
            raise ConfigError(
                f"self_patch compares patches, but the backbone {type(backbone).__name__} gives no patch tokens. "
                "Use a Vision Transformer, or leave the term out."
            )
        if config.aggregation == "class_attention" and backbone.aggregator is None:
            raise ConfigError(
                "self_patch has aggregation=class_attention, but the backbone has a class token instead. Set "
                "backbone.pooling=class_attention, or aggregation=mean or own_attention, which any backbone allows."
            )
        for name, group in self.groups.items():
            height, width = group.height_width
            grid = (height // side, width // side)
            try:
                similar_patches(
                    torch.zeros(1, grid[0] * grid[1], 1), grid, config.k, config.window, config.border,
                    config.include_self,
                )  # fmt: skip
            except ConfigError as error:
                raise ConfigError(f"self_patch on views.{name}, {height}x{width} pixels: {error}") from None
        self.num_heads = backbone.num_heads

    def build_heads(self, role: Role) -> PrototypeHead:
        """A head for patches, the same for both networks; with `own_attention` its `aggregator` comes with it."""
        head = self.config.head.build(self.embed_dim)
        if self.config.aggregation == "own_attention":
            if self.num_heads is None:
                raise ModelError(
                    "The class attention takes its heads from the backbone; call check_backbone first."
                )
            head.aggregator = Aggregator(self.embed_dim, self.num_heads)
            initialise(head.aggregator, self.config.head.init)
        return head

    def forward(
        self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool
    ) -> Term:
        """Match, sum up, project, compare."""
        with torch.no_grad():
            kept = {name: student.features[name].kept for name in self.groups}
            chosen = {name: self._choose(name, teacher, views, kept[name]) for name in self.groups}
            summed = torch.cat([self._sum_up(teacher, group).flatten(0, 1) for group in chosen.values()])
        target, centre = self.target(teacher, summed, progress)
        patches = torch.cat(
            [_rows(student.features[name].patches.flatten(0, 1), c.row) for name, c in chosen.items()]
        )
        online = self.online(student, patches)
        loss = prototype_cross_entropy(online, target, centre, self._pairs(chosen))
        scalars = self._watch(chosen) | watch_targets(target, centre) if watch else {}
        if self.summary_centre is not None:
            summary = self._summary_loss(student, teacher, chosen, online, target)
            loss = loss + summary
            scalars |= {"summary": summary} if watch else {}
        return Term(loss, scalars)

    def finish_step(self) -> None:
        """Move the centres."""
        super().finish_step()
        if self.summary_centre is not None:
            self.summary_centre.finish_step()

    # ---- what takes part

    def _choose(self, name: str, teacher: Branch, views: Views, seen: Tensor | None = None) -> _Chosen:
        """One group's teacher features, (batch, views) in one axis, and the patches that take part, their positives.

        `seen` (batch, views, kept) are the patches that the student sees, None for all.
        """
        features = (
            _flat(teacher.features[name]) if name in teacher.features else _run_teacher(teacher, views, name)
        )
        config = self.config
        raw, aggregator = _raw_patches(features), self._aggregator(teacher)
        contexts = None if aggregator is None else aggregator.contexts(raw)
        match_on = raw if config.match_on == "raw" else features.patches
        neighbours = similar_patches(
            match_on, features.grid, config.k, config.window, config.border, config.include_self
        )
        salted = fold_in(views.seed, _SALT + sum(name.encode()))
        patch, row = taking_part(salted, config.share, seen, features.patches.shape[:2])
        if patch is None:
            return _Chosen(features, None, None, neighbours, contexts)
        patch = patch.to(features.cls.device, non_blocking=True)
        row = None if row is None else row.to(features.cls.device, non_blocking=True)
        index = patch[..., None].expand(-1, -1, config.k)
        positives = SimilarPatches(*(field.gather(1, index) for field in neighbours))
        return _Chosen(features, patch, row, positives, contexts)

    def _pairs(self, chosen: Mapping[str, _Chosen]) -> Pairs:
        """Token i with token i. Counts are the same in all (micro-)batches, so a local mean is a mean of the whole."""
        tokens = {name: c.positives.patch.shape[:2].numel() for name, c in chosen.items()}
        total, views = sum(tokens.values()), sum(group.count for group in self.groups.values())
        weight = {name: self.groups[name].count / (views * n) for name, n in tokens.items()}
        device = next(iter(chosen.values())).positives.patch.device
        index = torch.arange(total, device=device)
        flat = self.config.average == "token"
        weights = [
            torch.full((n,), 1 / total if flat else weight[name], device=device) for name, n in tokens.items()
        ]
        return Pairs(index, index, torch.cat(weights))

    # ---- summing up

    def _aggregator(self, branch: Branch) -> Aggregator | None:
        if self.config.aggregation == "mean":
            return None
        in_heads = self.config.aggregation == "own_attention"
        aggregator = branch.heads.aggregator if in_heads else branch.backbone.aggregator
        assert isinstance(aggregator, Aggregator)
        return aggregator

    def _sum_up(self, teacher: Branch, chosen: _Chosen) -> Float[Tensor, "views chosen dim"]:
        aggregator, positives = self._aggregator(teacher), chosen.positives
        if aggregator is None:
            return weighted_mean(chosen.features.patches, positives)
        raw = _raw_patches(chosen.features)
        return aggregator.aggregate_neighbours(raw, positives.patch, positives.valid, chosen.contexts)

    def _summary_loss(
        self, student: Branch, teacher: Branch, chosen: Mapping[str, _Chosen], online: Prototypes, target: Prototypes
    ) -> Float[Tensor, ""]:  # fmt: skip
        """What trains `own_attention`: image queries of different views, compared over the patches' prototypes."""
        assert self.summary_centre is not None
        assert isinstance(student.heads, PrototypeHead) and isinstance(teacher.heads, PrototypeHead)
        ours, theirs = self._aggregator(student), self._aggregator(teacher)
        assert ours is not None and theirs is not None
        seen, wanted = [], []
        for name, group in self.groups.items():
            raw = _raw_patches(_flat(student.features[name])).detach()
            seen.append(ours(raw).unflatten(0, (-1, group.count)))
            with torch.no_grad():
                raw = _raw_patches(chosen[name].features)
                wanted.append(theirs(raw, chosen[name].contexts).unflatten(0, (-1, group.count)))
        summaries = torch.cat(seen, dim=1)
        batch, count = summaries.shape[:2]
        with torch.no_grad():
            target = target._replace(tokens=teacher.heads.bottleneck(torch.cat(wanted, dim=1).flatten(0, 1)))
            centre = self.summary_centre.for_targets(target)
        online = online._replace(tokens=student.heads.bottleneck(summaries.flatten(0, 1)))
        pairs = repeat_over_batch(self.summary_pairs, batch, count, count, summaries.device)
        return prototype_cross_entropy(online, target, centre, pairs) / batch

    # ---- what is watched

    def _watch(self, chosen: Mapping[str, _Chosen]) -> dict[str, Tensor]:
        """How many positives the border spoils, and how alike neighbours are.

        `border_share`: of all k positives, those missing under `clip` or wrapped under `torus`. `neighbour_cosine`: of
        the valid ones; it nears 1 when patches are over-smoothed.
        """
        spoilt, similarity, valid = [], [], []
        for group in chosen.values():
            neighbours = group.positives
            spoilt.append(self._spoilt(group).flatten())
            similarity.append(neighbours.similarity.flatten())
            valid.append(neighbours.valid.flatten())
        cosine = torch.cat(similarity).sum() / torch.cat(valid).sum()
        return {"border_share": torch.cat(spoilt).float().mean(), "neighbour_cosine": cosine}

    def _spoilt(self, group: _Chosen) -> Bool[Tensor, "views chosen k"]:
        neighbours = group.positives
        if self.config.border == "clip":
            return ~neighbours.valid
        patch = group.patch
        if patch is None:
            patch = torch.arange(neighbours.patch.shape[1], device=neighbours.patch.device)[None]
        return wrapped(patch, neighbours.patch, group.features.grid, self.config.window)


def _same_views(config: SelfPatchConfig, groups: Mapping[str, ViewGroup]) -> dict[str, ViewGroup]:
    """The groups in which student and teacher are compared."""
    roles = ("both",) if config.views == "both" else ("both", "student")
    chosen = {name: group for name, group in groups.items() if group.seen_by in roles}
    if not chosen:
        seen = ", ".join(f"views.{name} by {group.seen_by}" for name, group in groups.items())
        raise ConfigError(
            f"self_patch compares both networks on the same view, but none is seen by both ({seen}). Set a group's "
            "seen_by to both, or views=all, which runs the teacher on the student's views for this term."
        )
    refuse_dropped_patches("self_patch", chosen)
    refuse_moved_student("self_patch", chosen)
    return chosen


def _flat(features: Features) -> Features:
    """(batch, views) in one axis."""
    cls, patches, tokens = (
        t.flatten(0, 1) for t in (features.cls, features.patches, features.tokens_before_norm)
    )
    return Features(cls, patches, features.grid, tokens)


def _run_teacher(teacher: Branch, views: Views, name: str) -> Features:
    features: Features = teacher.backbone(views.groups[name].for_teacher.flatten(0, 1))
    return features


def _raw_patches(features: Features) -> Float[Tensor, "views patches dim"]:
    """The last block's patches before the norm, without a class token."""
    return features.tokens_before_norm[:, -features.patches.shape[1] :]


def _rows(tokens: Float[Tensor, "views patches dim"], row: Tensor | None) -> Float[Tensor, "tokens dim"]:
    """The chosen patches of all views, flattened."""
    if row is None:
        return tokens.flatten(0, 1)
    first = torch.arange(0, tokens.shape[:2].numel(), tokens.shape[1], device=tokens.device)[:, None]
    return tokens.flatten(0, 1).index_select(0, (row + first).flatten())
