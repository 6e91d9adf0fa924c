"""Neighbour selection against a loop over patches and window positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.errors import ConfigError, DataError
from glocal.matching import similar_patches
from glocal.matching.similar_patches import Border


def slow_neighbours(
    tokens: np.ndarray, grid: tuple[int, int], k: int, window: int, border: Border, include_self: bool
) -> list[list[list[tuple[int, float]]]]:
    """For every image and patch the chosen (patch, cosine), most similar first, ties in window order."""
    rows, columns = grid
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    reach = window // 2
    chosen = []
    for image in unit:
        of_image = []
        for patch in range(rows * columns):
            row, column = divmod(patch, columns)
            found = []
            for down in range(-reach, reach + 1):
                for right in range(-reach, reach + 1):
                    r, c = row + down, column + right
                    if (down, right) == (0, 0) and not include_self:
                        continue
                    if border == "clip" and not (0 <= r < rows and 0 <= c < columns):
                        continue
                    other = r % rows * columns + c % columns
                    found.append((other, float(image[patch] @ image[other])))
            of_image.append(sorted(found, key=lambda item: -item[1])[:k])
        chosen.append(of_image)
    return chosen


@pytest.mark.parametrize("grid", [(14, 14), (6, 6), (8, 8), (7, 11), (5, 6)])
@pytest.mark.parametrize("border", ["clip", "torus"])
@pytest.mark.parametrize(("window", "k", "include_self"), [(3, 4, False), (3, 9, True), (5, 7, False)])
def test_equals_the_loop(
    grid: tuple[int, int], border: Border, window: int, k: int, include_self: bool
) -> None:
    tokens = torch.randn(2, grid[0] * grid[1], 16, generator=torch.Generator().manual_seed(0))
    found = similar_patches(tokens, grid, k, window, border, include_self)
    expected = slow_neighbours(tokens.double().numpy(), grid, k, window, border, include_self)
    for image in range(2):
        for patch, wanted in enumerate(expected[image]):
            valid = found.valid[image, patch]
            assert found.patch[image, patch][valid].tolist() == [other for other, _ in wanted]
            assert found.similarity[image, patch][valid].tolist() == pytest.approx(
                [s for _, s in wanted], abs=1e-5
            )
            assert valid.tolist() == [True] * len(wanted) + [False] * (k - len(wanted))


def test_the_whole_grid_can_be_the_window() -> None:
    tokens = torch.randn(3, 25, 8, generator=torch.Generator().manual_seed(1))
    found = similar_patches(tokens, (5, 5), k=25, window=5, border="torus", include_self=True)
    assert torch.equal(found.patch.sort(-1).values, torch.arange(25).expand(3, 25, 25))
    assert torch.equal(found.patch[..., 0], torch.arange(25).expand(3, 25))


def test_a_corner_has_three_true_neighbours_and_five_wrapped_ones() -> None:
    tokens = torch.randn(1, 36, 8, generator=torch.Generator().manual_seed(2))
    clip, torus = (similar_patches(tokens, (6, 6), k=8, border=border) for border in ("clip", "torus"))
    assert sorted(clip.patch[0, 0][clip.valid[0, 0]].tolist()) == [1, 6, 7]
    assert (clip.patch[0, 0, 3:] == 0).all() and (clip.similarity[0, 0, 3:] == 0).all()
    assert sorted(torus.patch[0, 0].tolist()) == [1, 5, 6, 7, 11, 30, 31, 35]
    assert torus.valid.all()


def test_equal_similarities_are_taken_in_window_order() -> None:
    found = similar_patches(torch.ones(2, 49, 4), (7, 7), k=3)
    assert found.patch[0, 24].tolist() == [16, 17, 18]
    assert found.patch[1, 0].tolist() == [1, 7, 8]


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 7), st.integers(3, 7), st.sampled_from(["clip", "torus"]), st.integers(0, 100))
def test_similarity_is_symmetric_and_independent_of_the_batch(
    rows: int, columns: int, border: Border, seed: int
) -> None:
    tokens = torch.randn(3, rows * columns, 8, generator=torch.Generator().manual_seed(seed))
    found = similar_patches(tokens, (rows, columns), k=8, border=border)
    matrix = torch.zeros(3, rows * columns, rows * columns)
    image, patch, place = found.valid.nonzero(as_tuple=True)
    matrix[image, patch, found.patch[image, patch, place]] = found.similarity[image, patch, place]
    assert torch.equal(matrix, matrix.transpose(1, 2))
    alone = similar_patches(tokens[1:2], (rows, columns), k=8, border=border)
    assert torch.equal(alone.patch, found.patch[1:2]) and torch.equal(alone.valid, found.valid[1:2])


def test_half_precision_zero_tokens_and_gradients() -> None:
    tokens = torch.zeros(1, 9, 4, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = similar_patches(tokens, (3, 3), k=2)
    assert found.similarity.dtype == torch.float32 and not found.similarity.requires_grad
    assert found.similarity.isfinite().all() and found.valid.all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"k": 9}, ConfigError, "k is 9, but a 3x3 window has 8 candidates"),
        ({"k": 0}, ConfigError, "k is 0"),
        (
            {"window": 7},
            ConfigError,
            "window 7 is larger than the grid 6x6 of patches. Use a window of at most 5",
        ),
        ({"window": 4}, ConfigError, "window is 4; it must be odd"),
        ({"border": "tours"}, ConfigError, "Did you mean 'torus'"),
        ({"grid": (6, 5)}, DataError, r"\(1, 36, 4\); a 6x5 grid needs"),
        ({"tokens": torch.ones(36, 4)}, DataError, "patch tokens"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        arguments: dict[str, Any] = {"tokens": torch.ones(1, 36, 4), "grid": (6, 6), "k": 4}
        similar_patches(**(arguments | change))
