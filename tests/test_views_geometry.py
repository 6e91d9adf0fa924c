"""Boxes, flips and coins: their law, and what they depend on."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_boxes import draw_geometry

from glocal.views.boxes import GeometryLaw
from glocal.views.groups import ViewGroup
from glocal.views.randomness import fold_in, fold_in_array, hash_seed, mix, mix_array, uniform_array

DINO = {
    "global": ViewGroup(count=2, size=224, area=(0.4, 1.0)),
    "local": ViewGroup(count=8, size=96, area=(0.05, 0.4)),
}
seeds = st.integers(-(2**63), 2**63 - 1)
sides = st.integers(1, 700)


@st.composite
def groups(draw: st.DrawFn) -> ViewGroup:
    low, high = sorted((draw(st.floats(0.01, 1.0)), draw(st.floats(0.01, 1.0))))
    narrow, broad = sorted((draw(st.floats(0.2, 5.0)), draw(st.floats(0.2, 5.0))))
    return ViewGroup(count=draw(st.integers(1, 5)), size=32, area=(low, high), aspect=(narrow, broad))


@given(seeds, groups(), sides, sides)
def test_boxes_lie_inside_and_follow_the_law(seed: int, group: ViewGroup, height: int, width: int) -> None:
    for top, left, tall, wide in draw_geometry(seed, {"g": group}, height, width)["g"].box.tolist():
        assert top >= 0 and left >= 0 and tall >= 1 and wide >= 1
        assert top + tall <= height and left + wide <= width
        # Rounding moves each side by at most half a pixel; the fallback is central and has an allowed aspect.
        drawn = _allowed(group, tall, wide, height * width)
        central = top == (height - tall) // 2 and left == (width - wide) // 2
        assert drawn or (central and (tall == height or wide == width))


def _allowed(group: ViewGroup, tall: int, wide: int, area: int) -> bool:
    smallest, largest = (tall - 0.5) * (wide - 0.5), (tall + 0.5) * (wide + 0.5)
    narrowest, broadest = (wide - 0.5) / (tall + 0.5), (wide + 0.5) / (tall - 0.5)
    of_area = largest >= group.area[0] * area * (1 - 1e-9) and smallest <= group.area[1] * area * (1 + 1e-9)
    of_aspect = broadest >= group.aspect[0] * (1 - 1e-9) and narrowest <= group.aspect[1] * (1 + 1e-9)
    return of_area and of_aspect


def _reference_box(
    u: Iterator[float], group: ViewGroup, height: int, width: int
) -> tuple[int, int, int, int]:
    """One random resized crop, try by try, as the published recipe words it."""
    for _ in range(10):
        area = height * width * (group.area[0] + (group.area[1] - group.area[0]) * next(u))
        low, high = (math.log(a) for a in group.aspect)
        aspect = math.exp(low + (high - low) * next(u))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            return (
                math.floor(next(u) * (height - tall + 1)),
                math.floor(next(u) * (width - wide + 1)),
                tall,
                wide,
            )
    if width / height < group.aspect[0]:
        wide, tall = width, round(width / group.aspect[0])
    elif width / height > group.aspect[1]:
        wide, tall = round(height * group.aspect[1]), height
    else:
        wide, tall = width, height
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def test_distribution_equals_the_sequential_law() -> None:
    group = ViewGroup(count=1, size=8, area=(0.2, 1.0))
    height, width, images = 60, 97, 20_000
    law = GeometryLaw({"g": group})
    draws = law.draw(np.arange(images))
    ours = np.array(
        [law.place(draws, np.array([[height, width]]), i)[0, 0] for i in range(images)], dtype=float
    )
    generator = np.random.default_rng(0)
    slow = np.array(
        [_reference_box(iter(generator.random, 2.0), group, height, width) for _ in range(images)],
        dtype=float,
    )
    error = np.sqrt((ours.var(0) + slow.var(0)) / images)
    assert (np.abs(ours.mean(0) - slow.mean(0)) < 4.5 * error).all()
    for column in range(4):
        grid = np.unique(slow[:, column])
        cumulative = [
            np.searchsorted(np.sort(x[:, column]), grid, side="right") / images for x in (ours, slow)
        ]
        assert np.abs(cumulative[0] - cumulative[1]).max() < 1.95 * math.sqrt(
            2 / images
        )  # Kolmogorov-Smirnov, p .001
    flips = draws.flip.mean()
    assert abs(flips - 0.5) < 4.5 * math.sqrt(0.25 / images)


def test_fallback_is_the_largest_central_box_of_allowed_aspect() -> None:
    group = {"g": ViewGroup(count=3, size=16, area=(0.9, 1.0))}
    assert draw_geometry(0, group, 10, 1000)["g"].box.tolist() == [[0, 493, 10, 13]] * 3
    assert draw_geometry(0, group, 1000, 10)["g"].box.tolist() == [[493, 0, 13, 10]] * 3
    assert draw_geometry(0, group, 1, 1)["g"].box.tolist() == [[0, 0, 1, 1]] * 3
    extreme = {"g": ViewGroup(count=1, size=16, area=(0.9, 1.0), aspect=(5.0, 5.0))}
    assert draw_geometry(0, extreme, 100, 1)["g"].box.tolist() == [[49, 0, 1, 1]]


def test_a_group_depends_on_nothing_but_seed_and_its_number() -> None:
    both = draw_geometry(5, DINO, 300, 400)
    alone = draw_geometry(5, {"other name": DINO["global"]}, 300, 400)["other name"]
    assert np.array_equal(both["global"].box, alone.box)
    more = DINO["local"].model_copy(update={"count": 10})
    assert np.array_equal(
        both["local"].box, draw_geometry(5, {**DINO, "local": more}, 300, 400)["local"].box[:8]
    )
    other = draw_geometry(6, DINO, 300, 400)
    assert not np.array_equal(both["local"].box, other["local"].box)
    assert len({tuple(box) for box in both["local"].box.tolist()}) == 8


def test_a_batch_draws_what_single_images_draw() -> None:
    law = GeometryLaw(DINO)
    batch = law.draw(np.array([11, -3, 2**62]))
    for row, seed in enumerate((11, -3, 2**62)):
        one = draw_geometry(seed, DINO, 123, 77)
        assert np.array_equal(
            law.place(batch, np.array([[123, 77]]), row)[0],
            np.concatenate([one["global"].box, one["local"].box]),
        )
        assert np.array_equal(batch.flip[row], np.concatenate([one["global"].flip, one["local"].flip]))


def test_strong_coins() -> None:
    def strong(coin: str, probability: float, pipeline: tuple[()] | None = ()) -> np.ndarray:
        group = ViewGroup(
            count=4, size=8, area=(0.5, 1), strong=pipeline, strong_probability=probability, strong_coin=coin
        )
        return GeometryLaw({"first": DINO["global"], "g": group}).draw(np.arange(4000)).strong[:, 2:]

    view, image = strong("view", 0.3), strong("image", 0.3)
    for coins in (view, image):
        assert np.abs(coins.mean(axis=0) - 0.3).max() < 0.04
    assert (image == image[:, :1]).all()
    assert abs((view[:, 0] & view[:, 1]).mean() - 0.3**2) < 0.03
    assert not strong("view", 1.0, None).any()
    assert strong("view", 1.0).all()


def test_flip_probability() -> None:
    group = ViewGroup(count=1, size=8, area=(0.5, 1), flip=0.0)
    draws = GeometryLaw({"never": group, "always": group.model_copy(update={"flip": 1.0})}).draw(
        np.arange(500)
    )
    assert not draws.flip[:, 0].any() and draws.flip[:, 1].all()


@given(st.lists(st.tuples(seeds, st.integers(0, 2**40)), min_size=1, max_size=6))
def test_numpy_torch_and_plain_integers_hash_alike(pairs: list[tuple[int, int]]) -> None:
    seed, data = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    in_torch = fold_in(torch.from_numpy(seed), torch.from_numpy(data)).numpy()
    assert np.array_equal(fold_in_array(seed.view(np.uint64), data.view(np.uint64)).view(np.int64), in_torch)
    assert np.array_equal(mix_array(seed.view(np.uint64)).view(np.int64), mix(torch.from_numpy(seed)).numpy())
    folded = torch.zeros((), dtype=torch.int64)
    for _, part in pairs:
        folded = fold_in(folded, part)
    assert hash_seed(*(part for _, part in pairs)) == int(folded)


def test_uniforms_are_uniform() -> None:
    u = uniform_array(np.arange(2000, dtype=np.uint64), 50)
    assert u.min() >= 0 and u.max() < 1
    counts, _ = np.histogram(u, bins=50, range=(0, 1))
    assert ((counts - 2000) ** 2 / 2000).sum() < 95  # chi-square of 49 degrees, p 1e-4
    assert np.abs(np.corrcoef(u.T) - np.eye(50)).max() < 0.11
