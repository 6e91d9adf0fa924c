"""From views to the tokens that a patch-level term needs: matching all view pairs, and gathering only what matched.

Everything here runs on the CPU on boxes and flips, which stay there: some milliseconds a batch, and the number of
tokens is known without waiting for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from glocal.errors import ConfigError
from glocal.matching.geometric import Rule, Weight, bilinear_targets, teacher_index
from glocal.models.features import Features
from glocal.objectives.view_pairs import Pairs
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup
from glocal.views.randomness import fold_in, uniforms


class MatchedTokens(NamedTuple):
    """Rows to gather from each group's flattened (batch, views, patches) and the pairs between the gathered tokens.

    `image` and `view_pair` say for every pair which image and which (teacher view, student view) it belongs to;
    `view_pairs` is how many of the latter there are.
    """

    student_rows: dict[str, Int64[Tensor, " student_tokens"]]
    teacher_rows: dict[str, Int64[Tensor, " teacher_tokens"]]
    pairs: Pairs
    image: Int64[Tensor, " pairs"]
    view_pair: Int64[Tensor, " pairs"]
    view_pairs: int


class _GroupMatches(NamedTuple):
    """Pairs of one teacher group with one student group, as rows of the flattened (batch, views, patches)."""

    teacher_row: Tensor
    student_row: Tensor
    weight: Tensor
    image: Tensor
    view_pair: Tensor


def match_view_groups(
    views: Views,
    groups: Mapping[str, ViewGroup],
    student: Mapping[str, Features],
    teacher: Mapping[str, Features],
    *,
    rule: Rule = "center",
    weight: Weight = "none",
    max_scale_ratio: float | None = None,
    bilinear: bool = False,
    share: float = 1.0,
    same_view: bool = False,
) -> MatchedTokens:
    """Match every teacher view with every other student view.

    Args:
        views: boxes and flips of the batch.
        groups: the recipe's groups, for their counts.
        student: features by group; only their grids and kept patches are read. Pairs of a patch that was dropped are
            left out.
        teacher: likewise.
        rule: see `matching.geometric`.
        weight: likewise.
        max_scale_ratio: likewise.
        bilinear: read the teacher at the student's exact position: up to four teacher patches a student patch.
        share: use this share of student patches, the same ones for all teacher views, drawn anew every batch.
        same_view: match a view with itself too, for two networks that see it differently.
    """
    by_groups: dict[tuple[str, str], _GroupMatches] = {}
    view_pairs = 0
    for name_t in teacher:
        for name_s in student:
            used = _used_patches(views, name_s, student[name_s], share)
            matches, new = _match_groups(
                views, (name_t, teacher[name_t]), (name_s, student[name_s]), used,
                rule, weight, max_scale_ratio, bilinear, same_view,
            )  # fmt: skip
            by_groups[name_t, name_s] = matches._replace(view_pair=matches.view_pair + view_pairs)
            view_pairs += new
    student_rows, student_position = _compact(
        {n: [m.student_row for (_, s), m in by_groups.items() if s == n] for n in student}
    )
    teacher_rows, teacher_position = _compact(
        {n: [m.teacher_row for (t, _), m in by_groups.items() if t == n] for n in teacher}
    )
    pairs = Pairs(
        torch.cat([student_position[s][m.student_row] for (_, s), m in by_groups.items()]),
        torch.cat([teacher_position[t][m.teacher_row] for (t, _), m in by_groups.items()]),
        torch.cat([m.weight for m in by_groups.values()]),
    )
    image = torch.cat([m.image for m in by_groups.values()])
    view_pair = torch.cat([m.view_pair for m in by_groups.values()])
    return MatchedTokens(student_rows, teacher_rows, pairs, image, view_pair, view_pairs)


def keep_pairs(tokens: MatchedTokens, kept: Int64[Tensor, " fewer"]) -> MatchedTokens:
    """Only these pairs, in this order, and only the tokens that they need."""
    student_rows, student = _keep_tokens(tokens.student_rows, tokens.pairs.student[kept])
    teacher_rows, teacher = _keep_tokens(tokens.teacher_rows, tokens.pairs.teacher[kept])
    pairs = Pairs(student, teacher, tokens.pairs.weight[kept])
    return MatchedTokens(
        student_rows, teacher_rows, pairs, tokens.image[kept], tokens.view_pair[kept], tokens.view_pairs
    )


def gather_patches(
    features: Mapping[str, Features], rows: Mapping[str, Int64[Tensor, " rows"]]
) -> Float[Tensor, "all_rows dim"]:
    """The chosen patch embeddings of all groups, group after group."""
    return torch.cat(
        [
            features[n]
            .patches.flatten(0, 2)
            .index_select(0, r.to(features[n].patches.device, non_blocking=True))
            for n, r in rows.items()
        ]
    )


def refuse_moved_pixels(term: str, groups: Mapping[str, ViewGroup]) -> None:
    """Matching knows boxes and flips; an operation that moves pixels afterwards would make every match wrong.

    Raises:
        ConfigError: naming the group and the operation.
    """
    for name, group in groups.items():
        pipelines = [*group.photometric, *([group.strong] if group.strong is not None else [])]
        for operation in (o for pipeline in pipelines for o in pipeline):
            if operation.moves_pixels:
                raise ConfigError(
                    f"The term '{term}' matches patches by geometry, but views.{name} uses '{operation.name}', which moves pixels "
                    "after the crop, so matched patches would not show the same place. Remove that operation from the "
                    "group, or leave the term out."
                )


def refuse_moved_student(term: str, groups: Mapping[str, ViewGroup]) -> None:
    """For terms that compare patches of equal position in one view, which both networks must see alike.

    Raises:
        ConfigError: naming the group and the operation.
    """
    for name, group in groups.items():
        for operation in (o for pipeline in (*group.photometric, group.strong or ()) for o in pipeline):
            if operation.moves_pixels and operation.seen_by == "student":
                raise ConfigError(
                    f"The term '{term}' compares patches of equal position, but views.{name} uses '{operation.name}', which "
                    "moves the student's pixels and not the teacher's. Set its seen_by to both, or leave the term out."
                )


def refuse_dropped_patches(term: str, groups: Mapping[str, ViewGroup]) -> None:
    """For terms that need every patch of the teacher's views, whatever the student sees.

    Raises:
        ConfigError: naming the group.
    """
    for name, group in groups.items():
        if group.keep_patches < 1 and group.keep_patches_of == "both" and group.seen_by != "student":
            raise ConfigError(
                f"The term '{term}' needs all patches of the teacher's views, but views.{name}.keep_patches is "
                f"{group.keep_patches} for both networks. Set views.{name}.keep_patches_of=student, or leave the term out."
            )


def _match_groups(
    views: Views,
    teacher: tuple[str, Features],
    student: tuple[str, Features],
    used: Bool[Tensor, "batch views patches"] | None,
    rule: Rule,
    weight: Weight,
    max_scale_ratio: float | None,
    bilinear: bool,
    same_view: bool,
) -> tuple[_GroupMatches, int]:
    (name_t, features_t), (name_s, features_s) = teacher, student
    a, b = views.groups[name_t], views.groups[name_s]
    geometry = (
        a.box[:, :, None], a.flip[:, :, None], features_t.grid, b.box[:, None], b.flip[:, None], features_s.grid,
    )  # fmt: skip
    index = teacher_index(*geometry, rule=rule, weight=weight, max_scale_ratio=max_scale_ratio)
    matched = index.patch >= 0
    _, views_t, views_s, _ = matched.shape
    other = (
        ~torch.eye(views_t, dtype=torch.bool)
        if name_t == name_s and not same_view
        else torch.ones(views_t, views_s, dtype=torch.bool)
    )
    matched &= other[None, :, :, None]
    if used is not None:
        matched &= used[:, None]
    image, view_t, view_s, patch_s = matched.nonzero(as_tuple=True)
    patch_t, weights = (
        index.patch[image, view_t, view_s, patch_s],
        index.weight[image, view_t, view_s, patch_s],
    )
    number = (torch.cumsum(other.flatten(), 0) - 1).view(views_t, views_s)[view_t, view_s]
    if bilinear:
        corners = bilinear_targets(*geometry)
        corner_weight = corners.weight[image, view_t, view_s, patch_s]
        at = (corner_weight > 0).nonzero(as_tuple=True)
        patch_t = corners.patch[image, view_t, view_s, patch_s][at]
        weights = (weights[:, None] * corner_weight)[at]
        image, view_t, view_s, patch_s, number = (x[at[0]] for x in (image, view_t, view_s, patch_s, number))
    teacher_row = _rows(features_t, image, view_t, patch_t)
    student_row = _rows(features_s, image, view_s, patch_s)
    matches = _GroupMatches(teacher_row, student_row, weights, image, number)
    if features_t.kept is not None or features_s.kept is not None:
        both = (teacher_row >= 0) & (student_row >= 0)
        matches = _GroupMatches(*(x[both] for x in matches))
    return matches, int(other.sum())


def _rows(
    features: Features,
    image: Int64[Tensor, " pairs"],
    view: Int64[Tensor, " pairs"],
    patch: Int64[Tensor, " pairs"],
) -> Int64[Tensor, " pairs"]:
    """Rows of the flattened (batch, views, patches) where these patches of the grid stand; -1 where one was dropped."""
    batch, count, tokens = features.patches.shape[:3]
    if features.kept is None:
        return (image * count + view) * tokens + patch
    row = torch.full((batch, count, features.grid[0] * features.grid[1]), -1)
    row.scatter_(2, features.kept, torch.arange(batch * count * tokens).view(batch, count, tokens))
    return row[image, view, patch]


def _used_patches(
    views: Views, name: str, features: Features, share: float
) -> Bool[Tensor, "batch views patches"] | None:
    """A random share of a group's patches; a function of the images' seeds, so the same on any number of processes."""
    if share >= 1:
        return None
    batch, count = features.patches.shape[:2]
    patches = features.grid[0] * features.grid[1]
    drawn = uniforms(fold_in(views.seed, sum(name.encode())), count * patches)
    return (drawn < share).view(batch, count, patches)


def _keep_tokens(
    rows: Mapping[str, Tensor], wanted: Int64[Tensor, " pairs"]
) -> tuple[dict[str, Tensor], Tensor]:
    """Of the tokens of all groups those that are wanted, and where each wanted one stands among them."""
    counts = [r.numel() for r in rows.values()]
    flags = torch.zeros(sum(counts), dtype=torch.bool)
    flags[wanted] = True
    position = torch.cumsum(flags, 0) - 1
    return {n: r[f] for (n, r), f in zip(rows.items(), torch.split(flags, counts), strict=True)}, position[
        wanted
    ]


def _compact(rows: Mapping[str, list[Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """For each group the rows in use, ascending, and where each row stands in the concatenation over groups."""
    used, position, start = {}, {}, 0
    for name, lists in rows.items():
        every = torch.cat(lists)
        flags = torch.zeros(int(every.max()) + 1 if every.numel() else 0, dtype=torch.bool)
        flags[every] = True
        used[name] = flags.nonzero()[:, 0]
        position[name] = torch.cumsum(flags, 0) - 1 + start
        start += used[name].numel()
    return used, position
