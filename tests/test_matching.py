"""Rule `center` and the weights against brute force, and what both rules promise."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_boxes import as_tensors, draw_box

from glocal.errors import ConfigError, DataError
from glocal.matching import Matches, bilinear_targets, match_patches, teacher_index
from glocal.matching.geometric import RULES, Rule

side = st.integers(1, 9)
grids = st.tuples(side, side)
boxes = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 80), st.integers(1, 80))
rules = st.sampled_from(["center", "paper"])

Side = tuple[torch.Tensor, torch.Tensor, tuple[int, int]]
Pair = tuple[Side, Side]
"""Boxes, flips and grid of either view."""


@st.composite
def view_pairs(draw: st.DrawFn) -> Pair:
    """A batch of view pairs: boxes and flips of both, one grid each."""
    batch = draw(st.integers(1, 4))
    several_boxes = st.lists(boxes, min_size=batch, max_size=batch)
    several_flips = st.lists(st.booleans(), min_size=batch, max_size=batch)
    a = (*as_tensors(draw(several_boxes), draw(several_flips)), draw(grids))
    b = (*as_tensors(draw(several_boxes), draw(several_flips)), draw(grids))
    return a, b


def as_set(found: Matches) -> set[tuple[int, int, int, float]]:
    return set(zip(*(column.tolist() for column in found), strict=True))


def mirrored(patch: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    return patch // grid[1] * grid[1] + grid[1] - 1 - patch % grid[1]


@settings(max_examples=60, deadline=None)
@given(view_pairs())
def test_center_rule_is_the_cell_that_contains_the_centre(pair: Pair) -> None:
    (boxes_a, flips_a, grid_a), (boxes_b, flips_b, grid_b) = pair
    index, weight = teacher_index(boxes_a, flips_a, grid_a, boxes_b, flips_b, grid_b)
    for image in range(len(boxes_a)):
        top_a, left_a, height_a, width_a = boxes_a[image].tolist()
        top_b, left_b, height_b, width_b = boxes_b[image].tolist()
        for patch in range(grid_b[0] * grid_b[1]):
            row, column = divmod(patch, grid_b[1])
            if flips_b[image]:
                column = grid_b[1] - 1 - column
            # Whole numbers throughout: the centre and the teacher's cells in units that divide neither.
            row_a = (grid_a[0] * (2 * grid_b[0] * (top_b - top_a) + (2 * row + 1) * height_b)) // (
                2 * grid_b[0] * height_a
            )
            column_a = (grid_a[1] * (2 * grid_b[1] * (left_b - left_a) + (2 * column + 1) * width_b)) // (
                2 * grid_b[1] * width_a
            )
            if flips_a[image]:
                column_a = grid_a[1] - 1 - column_a
            inside = 0 <= row_a < grid_a[0] and 0 <= column_a < grid_a[1]
            assert index[image, patch] == (row_a * grid_a[1] + column_a if inside else -1)
            assert weight[image, patch] == float(inside)


@settings(max_examples=60, deadline=None)
@given(view_pairs(), rules)
def test_overlap_weight_is_the_shared_area_over_the_smaller_patch(pair: Pair, rule: Rule) -> None:
    (boxes_a, flips_a, grid_a), (boxes_b, flips_b, grid_b) = pair
    found = match_patches(boxes_a, flips_a, grid_a, boxes_b, flips_b, grid_b, rule=rule, weight="overlap")

    def footprint(box: torch.Tensor, flip: torch.Tensor, grid: tuple[int, int], patch: int) -> np.ndarray:
        row, column = divmod(patch, grid[1])
        column = grid[1] - 1 - column if flip else column
        top, left, height, width = (float(v) for v in box)
        step = np.array([height / grid[0], width / grid[1]])
        low = np.array([top, left]) + np.array([row, column]) * step
        return np.stack([low, low + step])

    for image, patch_a, patch_b, weight in zip(*(column.tolist() for column in found), strict=True):
        cell_a = footprint(boxes_a[image], flips_a[image], grid_a, patch_a)
        cell_b = footprint(boxes_b[image], flips_b[image], grid_b, patch_b)
        shared = np.clip(np.minimum(cell_a[1], cell_b[1]) - np.maximum(cell_a[0], cell_b[0]), 0, None).prod()
        smaller = min((cell_a[1] - cell_a[0]).prod(), (cell_b[1] - cell_b[0]).prod())
        assert weight == pytest.approx(shared / smaller, abs=1e-6)
    assert rule == "paper" or (found.weight > 0).all()


@settings(max_examples=60, deadline=None)
@given(view_pairs(), rules)
def test_a_flip_mirrors_patches_and_changes_nothing_else(pair: Pair, rule: Rule) -> None:
    (boxes_a, flips_a, grid_a), (boxes_b, flips_b, grid_b) = pair
    if rule == "paper":
        # A run that rounds up beyond the grid is empty only under flip: there the reference is not equivariant.
        plain = torch.zeros_like(flips_a)
        found = [
            match_patches(boxes_a, f, grid_a, boxes_b, plain, grid_b, rule=rule) for f in (plain, ~plain)
        ]
        if len(found[0].image) != len(found[1].image):
            return
        assert torch.equal(found[0].patch_a, mirrored(found[1].patch_a, grid_a))
        assert torch.equal(found[0].patch_b, found[1].patch_b)
        return
    neither = match_patches(boxes_a, flips_a, grid_a, boxes_b, flips_b, grid_b, weight="overlap")
    teacher = match_patches(boxes_a, ~flips_a, grid_a, boxes_b, flips_b, grid_b, weight="overlap")
    student = match_patches(boxes_a, flips_a, grid_a, boxes_b, ~flips_b, grid_b, weight="overlap")
    assert as_set(neither) == as_set(teacher._replace(patch_a=mirrored(teacher.patch_a, grid_a)))
    assert as_set(neither) == as_set(student._replace(patch_b=mirrored(student.patch_b, grid_b)))


@settings(max_examples=40, deadline=None)
@given(view_pairs(), rules)
def test_identical_crops_give_the_identity(pair: Pair, rule: Rule) -> None:
    boxes_a, flips_a, grid = pair[0]
    found = match_patches(boxes_a, flips_a, grid, boxes_a, flips_a, grid, rule=rule, weight="overlap")
    assert sorted(found.patch_a.tolist()) == sorted(list(range(grid[0] * grid[1])) * len(boxes_a))
    assert torch.equal(found.patch_a, found.patch_b)
    assert (found.weight == 1).all()


@settings(max_examples=40, deadline=None)
@given(view_pairs(), rules, st.sampled_from([0, 1]))
def test_disjoint_crops_give_nothing(pair: Pair, rule: Rule, axis: int) -> None:
    (boxes_a, flips_a, grid_a), (boxes_b, flips_b, grid_b) = pair
    boxes_b = boxes_b.clone()
    boxes_b[:, axis] = boxes_a[:, axis] + boxes_a[:, axis + 2]  # Side by side: they touch and share no pixel.
    found = match_patches(boxes_a, flips_a, grid_a, boxes_b, flips_b, grid_b, rule=rule, weight="overlap")
    assert len(found.image) == 0
    index, weight = teacher_index(
        boxes_a, flips_a, grid_a, boxes_b, flips_b, grid_b, rule=rule, weight="overlap"
    )
    assert (index == -1).all() and (weight == 0).all()
    assert (bilinear_targets(boxes_a, flips_a, grid_a, boxes_b, flips_b, grid_b).weight == 0).all()


@settings(max_examples=40, deadline=None)
@given(view_pairs(), rules, st.randoms(use_true_random=False))
def test_a_permuted_batch_gives_permuted_matches(pair: Pair, rule: Rule, random: Random) -> None:
    (boxes_a, flips_a, grid_a), (boxes_b, flips_b, grid_b) = pair
    order = list(range(len(boxes_a)))
    random.shuffle(order)
    whole = teacher_index(boxes_a, flips_a, grid_a, boxes_b, flips_b, grid_b, rule=rule, weight="overlap")
    permuted = teacher_index(
        boxes_a[order],
        flips_a[order],
        grid_a,
        boxes_b[order],
        flips_b[order],
        grid_b,
        rule=rule,
        weight="overlap",
    )
    assert torch.equal(permuted.patch, whole.patch[order])
    assert torch.equal(permuted.weight, whole.weight[order])


@settings(max_examples=60, deadline=None)
@given(view_pairs())
def test_swapped_views_give_swapped_pairs_under_the_paper_rule(pair: Pair) -> None:
    (boxes_a, flips_a, grid_a), (boxes_b, flips_b, grid_b) = pair
    there = match_patches(boxes_a, flips_a, grid_a, boxes_b, flips_b, grid_b, rule="paper", weight="overlap")
    back = match_patches(boxes_b, flips_b, grid_b, boxes_a, flips_a, grid_a, rule="paper", weight="overlap")
    assert as_set(there) == as_set(back._replace(patch_a=back.patch_b, patch_b=back.patch_a))


@settings(max_examples=60, deadline=None)
@given(view_pairs())
def test_swapped_views_give_a_pair_the_same_overlap_under_the_center_rule(pair: Pair) -> None:
    (boxes_a, flips_a, grid_a), (boxes_b, flips_b, grid_b) = pair
    there = match_patches(boxes_a, flips_a, grid_a, boxes_b, flips_b, grid_b, weight="overlap")
    back = match_patches(boxes_b, flips_b, grid_b, boxes_a, flips_a, grid_a, weight="overlap")
    weight = {(i, a, b): w for i, a, b, w in as_set(there)}
    both = [((i, b, a), w) for i, a, b, w in as_set(back) if (i, b, a) in weight]
    assert all(weight[key] == w for key, w in both)


@settings(max_examples=40, deadline=None)
@given(view_pairs(), rules, st.sampled_from([None, 1.0, 1.7]))
def test_dense_and_flat_forms_agree(pair: Pair, rule: Rule, ratio: float | None) -> None:
    (boxes_a, flips_a, grid_a), (boxes_b, flips_b, grid_b) = pair
    views = (boxes_a, flips_a, grid_a, boxes_b, flips_b, grid_b)
    flat = match_patches(*views, rule=rule, weight="overlap", max_scale_ratio=ratio)
    dense = teacher_index(*views, rule=rule, weight="overlap", max_scale_ratio=ratio)
    image, patch_b = (dense.patch >= 0).nonzero(as_tuple=True)
    weight = dense.weight[image, patch_b]
    rebuilt = {
        (i, a, b): w for i, a, b, w in as_set(Matches(image, dense.patch[image, patch_b], patch_b, weight))
    }
    listed = {(i, a, b): w for i, a, b, w in as_set(flat)}
    assert rebuilt.keys() == listed.keys() and len(flat.image) == len(listed)
    assert rebuilt == pytest.approx(listed, abs=1e-6)
    if ratio is not None:
        cell_a = boxes_a[:, 2:] / torch.tensor(grid_a, dtype=torch.float64)
        cell_b = boxes_b[:, 2:] / torch.tensor(grid_b, dtype=torch.float64)
        apart = (torch.maximum(cell_a / cell_b, cell_b / cell_a) > ratio * (1 + 1e-9)).any(-1)
        assert not apart[flat.image].any()


def test_leading_axes_broadcast_to_all_view_pairs() -> None:
    generator = np.random.default_rng(1)
    teachers = torch.tensor([[draw_box(generator, 256, 256, (0.4, 1)) for _ in range(2)] for _ in range(3)])
    students = torch.tensor(
        [[draw_box(generator, 256, 256, (0.05, 0.4)) for _ in range(4)] for _ in range(3)]
    )
    flips_t = torch.from_numpy(generator.random((3, 2)) < 0.5)
    flips_s = torch.from_numpy(generator.random((3, 4)) < 0.5)
    args = (teachers[:, :, None], flips_t[:, :, None], (14, 14), students[:, None], flips_s[:, None], (6, 6))
    index, weight = teacher_index(*args, weight="overlap")
    soft = bilinear_targets(*args)
    assert index.shape == weight.shape == (3, 2, 4, 36)
    for t in range(2):
        for s in range(4):
            one = (teachers[:, t], flips_t[:, t], (14, 14), students[:, s], flips_s[:, s], (6, 6))
            assert torch.equal(index[:, t, s], teacher_index(*one).patch)
            assert torch.equal(soft.weight[:, t, s], bilinear_targets(*one).weight)


@settings(max_examples=60, deadline=None)
@given(view_pairs())
def test_bilinear_read_of_the_teachers_positions_is_the_students_position(pair: Pair) -> None:
    """Reading the cell centres' own coordinates gives the student's centre, clamped to the outermost centres."""
    (boxes_a, flips_a, grid_a), (boxes_b, flips_b, grid_b) = pair

    def centres(box: torch.Tensor, flip: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        top, left, height, width = box.double()
        y = top + (torch.arange(grid[0], dtype=torch.float64) + 0.5) * height / grid[0]
        x = left + (torch.arange(grid[1], dtype=torch.float64) + 0.5) * width / grid[1]
        return torch.cartesian_prod(y, x.flip(0) if flip else x).view(-1, 2)

    soft = bilinear_targets(boxes_a, flips_a, grid_a, boxes_b, flips_b, grid_b)
    hard = teacher_index(boxes_a, flips_a, grid_a, boxes_b, flips_b, grid_b)
    assert torch.allclose(soft.weight.sum(-1), hard.weight, atol=1e-6)
    assert (soft.weight >= 0).all() and soft.patch.min() >= 0 and soft.patch.max() < grid_a[0] * grid_a[1]
    for image in range(len(boxes_a)):
        teacher = centres(boxes_a[image], flips_a[image], grid_a)
        student = centres(boxes_b[image], flips_b[image], grid_b)
        read = (soft.weight[image].double()[..., None] * teacher[soft.patch[image]]).sum(1)
        wanted = student.clamp(teacher.amin(0), teacher.amax(0))
        matched = hard.patch[image] >= 0
        assert torch.allclose(read[matched], wanted[matched], atol=1e-4)


def test_a_scale_ratio_drops_pairs_of_unlike_patches() -> None:
    box, flip = torch.tensor([[0, 0, 64, 64]]), torch.tensor([False])
    narrow = torch.tensor([[0, 0, 64, 32]])
    args = (box, flip, (4, 4), narrow, flip, (4, 4))
    assert len(match_patches(*args, max_scale_ratio=2.0).image) == 16
    assert len(match_patches(*args, max_scale_ratio=1.9).image) == 0


def test_many_pairs_go_through_under_float_boxes_and_an_empty_batch() -> None:
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.bool)
    assert match_patches(*none, (3, 3), *none, (3, 3)).image.shape == (0,)
    box, flip = torch.tensor([[0.25, 0.5, 31.5, 30.25]]), torch.tensor([True])
    assert match_patches(box, flip, (4, 4), box, flip, (4, 4)).patch_a.tolist() == list(range(16))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"rule": "centre"}, ConfigError, "'centre' is unknown. Did you mean 'center'"),
        ({"weight": "overlaps"}, ConfigError, "Did you mean 'overlap'"),
        ({"max_scale_ratio": 0.5}, ConfigError, "max_scale_ratio is 0.5"),
        ({"max_scale_ratio": float("nan")}, ConfigError, "max_scale_ratio is nan"),
        ({"grid_a": (0, 4)}, ConfigError, r"grid_a is \(0, 4\)"),
        ({"boxes_b": torch.tensor([[0, 0, 0, 8]])}, DataError, r"boxes_b holds \[0, 0, 0, 8\]"),
        ({"boxes_a": torch.tensor([[-1, 0, 8, 8]])}, DataError, "corner not negative"),
        ({"boxes_a": torch.tensor([[0, 0, 8, float("inf")]])}, DataError, "finite"),
        ({"boxes_a": torch.tensor([[0, 0, 8]])}, DataError, r"shape \(1, 3\)"),
        ({"flips_a": torch.tensor([False, True])}, DataError, r"flips_a \(2,\)"),
        (
            {"boxes_b": torch.ones(3, 4), "flips_b": torch.ones(3, dtype=torch.bool), "boxes_a": torch.ones(2, 4),
             "flips_a": torch.ones(2, dtype=torch.bool)},
            DataError,
            "don't pair up",
        ),
        ({"boxes_a": torch.ones(1, 1, 4), "flips_a": torch.ones(1, 1, dtype=torch.bool)}, DataError, "Flatten"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    box, flip = torch.tensor([[0, 0, 8, 8]]), torch.tensor([False])
    arguments: dict[str, Any] = {
        "boxes_a": box,
        "flips_a": flip,
        "grid_a": (4, 4),
        "boxes_b": box,
        "flips_b": flip,
    }
    arguments |= {"grid_b": (4, 4)} | change
    with pytest.raises(error, match=words):
        match_patches(**arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu() -> None:
    generator = np.random.default_rng(2)
    pair = [torch.tensor([draw_box(generator, 375, 500, (0.1, 1)) for _ in range(256)]) for _ in range(2)]
    flips = [torch.from_numpy(generator.random(256) < 0.5) for _ in range(2)]
    for rule in RULES:
        args = (pair[0], flips[0], (28, 28), pair[1], flips[1], (12, 12))
        here = match_patches(*args, rule=rule, weight="overlap")
        box_a, flip_a, grid_a, box_b, flip_b, grid_b = args
        there = match_patches(
            box_a.cuda(),
            flip_a.cuda(),
            grid_a,
            box_b.cuda(),
            flip_b.cuda(),
            grid_b,
            rule=rule,
            weight="overlap",
        )
        assert all(torch.equal(x, y.cpu()) for x, y in zip(here[:3], there[:3], strict=True))
        assert torch.allclose(here.weight, there.weight.cpu())
