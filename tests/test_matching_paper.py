"""Rule `paper` against a slow NumPy version of the specification."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from random_boxes import Box, as_tensors, draw_box

from glocal.matching import match_patches

VECTORS = [
    (
        ((0, 0, 200, 200), False, 7),
        ((50, 50, 200, 200), False, 7),
        [*range(17, 22), *range(24, 29), *range(31, 36), *range(38, 43), *range(45, 50)],
        [*range(1, 6), *range(8, 13), *range(15, 20), *range(22, 27), *range(29, 34)],
    ),
    (
        ((0, 0, 200, 200), True, 7),
        ((50, 50, 200, 200), False, 7),
        [*range(19, 14, -1), *range(26, 21, -1), *range(33, 28, -1), *range(40, 35, -1), *range(47, 42, -1)],
        [*range(1, 6), *range(8, 13), *range(15, 20), *range(22, 27), *range(29, 34)],
    ),
    (
        ((20, 10, 220, 240), False, 7),
        ((60, 80, 100, 90), False, 3),
        [10, 11, 12, 17, 18, 19, 24, 25, 26],
        [1, 2, 3, 4, 5, 6, 7, 8, 9],
    ),
    (
        ((20, 10, 220, 240), False, 7),
        ((60, 80, 100, 90), True, 3),
        [10, 11, 12, 17, 18, 19, 24, 25, 26],
        [3, 2, 1, 6, 5, 4, 9, 8, 7],
    ),
    (((0, 0, 160, 256), True, 7), ((100, 40, 120, 80), True, 3), [34, 33, 48, 47], [3, 1, 6, 4]),
    (((0, 0, 180, 160), False, 7), ((170, 150, 80, 100), False, 3), [], []),
    (((0, 0, 100, 100), False, 7), ((120, 120, 90, 90), False, 3), [], []),
    (
        ((10, 30, 240, 120), False, 7),
        ((90, 0, 110, 250), False, 7),
        [15, 18, 21, 22, 25, 28, 29, 32, 35],
        [2, 3, 4, 23, 24, 25, 44, 45, 46],
    ),
]


def slow_block(box: Box, flip: bool, grid: tuple[int, int], common: Box) -> np.ndarray:
    """Section 2, steps 2 and 3: the cells of one view inside the common rectangle, in source order."""
    rows, columns = grid
    top, left, height, width = box
    common_top, common_left, common_height, common_width = common
    column_count = round(columns * common_width / width)
    row_count = round(rows * common_height / height)
    first_column = round(columns * (common_left - left) / width)
    first_row = round(rows * (common_top - top) / height)
    last_column, last_row = first_column + column_count, first_row + row_count
    if flip:
        first_column, last_column = columns - last_column, columns - first_column
    cells = np.arange(rows * columns).reshape(rows, columns)[first_row:last_row, first_column:last_column]
    return cells[:, ::-1] if flip else cells


def slow_paper(
    box_a: Box, flip_a: bool, grid_a: tuple[int, int], box_b: Box, flip_b: bool, grid_b: tuple[int, int]
) -> tuple[list[int], list[int]]:
    """Section 2 for one pair of views, without the class token."""
    top, left = max(box_a[0], box_b[0]), max(box_a[1], box_b[1])
    bottom = min(box_a[0] + box_a[2], box_b[0] + box_b[2])
    right = min(box_a[1] + box_a[3], box_b[1] + box_b[3])
    if bottom <= top or right <= left:
        return [], []
    common = (top, left, bottom - top, right - left)
    block_a, block_b = slow_block(box_a, flip_a, grid_a, common), slow_block(box_b, flip_b, grid_b, common)
    for axis in (0, 1):
        size_a, size_b = block_a.shape[axis], block_b.shape[axis]
        shorter, longer = min(size_a, size_b), max(size_a, size_b)
        chosen = np.floor(np.linspace(0, longer - 1, shorter)).astype(int)
        if size_a > size_b:
            block_a = block_a.take(chosen, axis)
        elif size_b > size_a:
            block_b = block_b.take(chosen, axis)
    return block_a.ravel().tolist(), block_b.ravel().tolist()


@pytest.mark.parametrize("vector", VECTORS)
def test_paper_rule_gives_the_eight_test_vectors(vector: tuple[Any, ...]) -> None:
    (box_a, flip_a, n_a), (box_b, flip_b, n_b), tokens_a, tokens_b = vector
    found = match_patches(
        *as_tensors([box_a], [flip_a]), (n_a, n_a), *as_tensors([box_b], [flip_b]), (n_b, n_b), rule="paper"
    )
    assert [p + 1 for p in found.patch_a.tolist()] == tokens_a
    assert [p + 1 for p in found.patch_b.tolist()] == tokens_b


# Global-global and global-local grids of 224/96 at patch 8, 16, 32; of 32/16 at patch 4; grids that aren't square.
SETTINGS = [
    ((28, 28), (28, 28), (256, 256)),
    ((28, 28), (12, 12), (375, 500)),
    ((14, 14), (14, 14), (256, 256)),
    ((14, 14), (6, 6), (480, 320)),
    ((7, 7), (7, 7), (224, 224)),
    ((7, 7), (3, 3), (256, 341)),
    ((8, 8), (8, 8), (32, 32)),
    ((8, 8), (4, 4), (32, 32)),
    ((7, 11), (5, 3), (300, 500)),
    ((31, 4), (46, 23), (640, 427)),
]


def test_paper_rule_equals_the_slow_version_on_10000_random_pairs() -> None:
    generator = np.random.default_rng(0)
    differences = pairs = 0
    for grid_a, grid_b, (height, width) in SETTINGS:
        small = (0.05, 0.4) if grid_b != grid_a else (0.2, 1.0)
        boxes_a = [draw_box(generator, height, width, (0.2, 1.0)) for _ in range(1000)]
        boxes_b = [draw_box(generator, height, width, small) for _ in range(1000)]
        flips_a, flips_b = (generator.random(1000) < 0.5).tolist(), (generator.random(1000) < 0.5).tolist()
        found = match_patches(
            *as_tensors(boxes_a, flips_a), grid_a, *as_tensors(boxes_b, flips_b), grid_b, rule="paper"
        )
        counts = torch.bincount(found.image, minlength=1000).tolist()
        split_a, split_b = found.patch_a.split(counts), found.patch_b.split(counts)
        for i in range(1000):
            expected = slow_paper(boxes_a[i], flips_a[i], grid_a, boxes_b[i], flips_b[i], grid_b)
            differences += expected != (split_a[i].tolist(), split_b[i].tolist())
            pairs += len(expected[0])
    assert differences == 0
    assert pairs > 100_000


def test_paper_rule_where_two_halves_round_up_beyond_the_grid() -> None:
    """Offset 1.5 of 7 cells and extent 5.5: both round up and the run ends beyond the grid."""
    for flip in (False, True):
        box_a, box_b = (0, 0, 14, 14), (0, 3, 14, 28)
        expected = slow_paper(box_a, flip, (7, 7), box_b, False, (7, 7))
        found = match_patches(
            *as_tensors([box_a], [flip]), (7, 7), *as_tensors([box_b], [False]), (7, 7), rule="paper"
        )
        assert (found.patch_a.tolist(), found.patch_b.tolist()) == expected
        assert (len(expected[0]) == 0) == flip
