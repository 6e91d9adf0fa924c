"""Every view through its own pipeline, reproducibly, and normalised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from glocal.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from glocal.views.augment import augment, view_seeds
from glocal.views.batch import ViewBatch, Views
from glocal.views.groups import Pipeline, ViewGroup
from glocal.views.photometric import apply_pipeline
from glocal.views.photometric.blur import GaussianBlur
from glocal.views.photometric.colour import ColorJitter, Grayscale
from glocal.views.photometric.tone import Invert, Posterise, Solarise
from glocal.views.randomness import hash_seed

JITTER: Pipeline = (ColorJitter(probability=0.8), Grayscale(probability=0.3))
BLUR: Pipeline = (GaussianBlur(probability=0.5), Solarise(probability=0.3))


def _group(count: int = 2, size: int | tuple[int, int] = 32, **options: Any) -> ViewGroup:
    return ViewGroup(count=count, size=size, area=(0.4, 1.0), **options)


def _views(groups: dict[str, ViewGroup], batch: int = 5) -> Views:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, group in groups.items():
        shape = (batch, group.count)
        pixels = torch.randint(
            0, 256, (*shape, 3, *group.height_width), generator=generator, dtype=torch.uint8
        )
        strong = torch.rand(shape, generator=generator) < 0.5
        made[name] = ViewBatch(pixels, torch.zeros(*shape, 4), torch.zeros(shape, dtype=torch.bool), strong)
    seed = torch.randint(-(2**62), 2**62, (batch,), generator=generator)
    return Views(made, seed, torch.arange(batch), torch.full((batch, 2), 64))


def _expected(
    views: Views, name: str, number: int, pipelines: list[list[Pipeline]], patch_size: int = 16
) -> Tensor:
    """View by view; `pipelines` by image and view."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = views.groups[name].pixels
    out = torch.empty(pixels.shape)
    for image, row in enumerate(pixels):
        for view, one in enumerate(row):
            seed = torch.tensor([_fold(_fold(int(views.seed[image]), number), view)])
            unit = apply_pipeline(one[None].float() / 255, pipelines[image][view], seed, patch_size)[0]
            out[image, view] = (unit - mean) / std
    return out


def _fold(seed: int, data: int) -> int:
    """SplitMix64's finaliser in plain integers, written out again."""

    def mixed(x: int) -> int:
        x %= 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    folded = mixed(mixed(seed + golden) ^ ((data + 1) * golden % 2**64))
    return folded - 2**64 if folded >= 2**63 else folded


def _close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=2e-5)


def test_without_operations_views_are_only_normalised() -> None:
    groups = {"a": _group(), "b": _group(3, (16, 32))}
    views = _views(groups)
    done = augment(views, groups, 16)
    for number, name in enumerate(groups):
        _close(done.groups[name].pixels, _expected(views, name, number, [[()] * 3] * 5))
        assert done.groups[name].teacher_pixels is None
        assert done.groups[name].box is views.groups[name].box
    other = augment(views, groups, 16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    _close(other.groups["a"].pixels, views.groups["a"].pixels.float() / 255)


@pytest.mark.parametrize(
    "photometric", [(JITTER,), (JITTER, BLUR, JITTER), (JITTER + BLUR,), ((), BLUR, JITTER)]
)
def test_every_view_takes_its_own_pipeline(
    photometric: tuple[Pipeline, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = {"first": _group(), "g": _group(3, photometric=photometric)}
    views = _views(groups)
    per_view = list(photometric) * (3 // len(photometric))
    wanted = _expected(views, "g", 1, [per_view] * 5)
    _close(augment(views, groups, 16).groups["g"].pixels, wanted)
    monkeypatch.setattr("glocal.views.photometric.pipeline.PIECE_BYTES", 2 * 4 * 3 * 32 * 32)
    _close(augment(views, groups, 16).groups["g"].pixels, wanted)


@pytest.mark.parametrize("photometric", [(JITTER,), (JITTER, BLUR, BLUR)])
def test_coins_choose_the_strong_pipeline(photometric: tuple[Pipeline, ...]) -> None:
    strong: Pipeline = (Invert(), Posterise(bits=2))
    groups = {"g": _group(3, photometric=photometric, strong=strong)}
    views = _views(groups, batch=8)
    coins = views.groups["g"].strong
    assert coins.any() and not coins.all()
    weak = list(photometric) * (3 // len(photometric))
    chosen = [[strong if coin else weak[view] for view, coin in enumerate(row)] for row in coins.tolist()]
    _close(augment(views, groups, 16).groups["g"].pixels, _expected(views, "g", 0, chosen))


@pytest.mark.parametrize("strong", [None, (Invert(seen_by="student"), *JITTER)])
@pytest.mark.parametrize("views_differ", [False, True])
def test_the_teacher_goes_without_student_operations(strong: Pipeline | None, views_differ: bool) -> None:
    """Dropping the student's operation must not change the draws of those after it."""
    noisy: Pipeline = (
        ColorJitter(),
        Posterise(bits=2, seen_by="student", unit="patch"),
        GaussianBlur(probability=0.5),
    )
    photometric = (noisy, JITTER, noisy) if views_differ else (noisy,)
    groups = {"g": _group(3, photometric=photometric, strong=strong)}
    views = _views(groups)
    done = augment(views, groups, 16).groups["g"]
    neutral = Posterise(bits=8, unit="patch")
    weak = list(photometric) * (3 // len(photometric))
    coins = views.groups["g"].strong if strong else torch.zeros(5, 3, dtype=torch.bool)
    chosen = [
        [strong if coin and strong else weak[v] for v, coin in enumerate(row)] for row in coins.tolist()
    ]
    _close(done.pixels, _expected(views, "g", 0, chosen))
    clean = [
        [tuple(neutral if op.seen_by == "student" else op for op in pipeline) for pipeline in row]
        for row in chosen
    ]
    assert done.teacher_pixels is not None
    wanted = _expected(views, "g", 0, clean)
    # Posterise to 8 bits rounds to levels; half a level over the smallest deviation, amplified by nothing after it.
    torch.testing.assert_close(done.teacher_pixels, wanted, rtol=0, atol=0.5 / 255 / min(IMAGENET_STD) + 1e-4)
    assert not torch.equal(done.pixels, done.teacher_pixels)


def test_a_group_of_one_network_holds_one_picture() -> None:
    pipeline: Pipeline = (Invert(seen_by="student"), ColorJitter())
    for seen_by in ("teacher", "student"):
        groups = {"g": _group(photometric=(pipeline,), seen_by=seen_by)}
        views = _views(groups)
        done = augment(views, groups, 16).groups["g"]
        both = augment(views, {"g": _group(photometric=(pipeline,))}, 16).groups["g"]
        assert done.teacher_pixels is None
        _close(done.pixels, both.for_teacher if seen_by == "teacher" else both.pixels)


def test_results_do_not_depend_on_the_batch() -> None:
    groups = {"a": _group(photometric=(JITTER, BLUR)), "b": _group(4, 16, photometric=(BLUR,))}
    views = _views(groups, batch=6)
    whole, parts = augment(views, groups, 16), [augment(part, groups, 16) for part in views.split(3)]
    for name in groups:
        _close(whole.groups[name].pixels, torch.cat([part.groups[name].pixels for part in parts]))


def test_view_seeds_are_folded_group_then_view() -> None:
    seeds = view_seeds(torch.tensor([hash_seed(1), hash_seed(2)]), 1, 3)
    for image in range(2):
        for view in range(3):
            assert int(seeds[image, view]) == _fold(_fold(hash_seed(image + 1), 1), view)
    assert len(seeds.unique()) == 6
