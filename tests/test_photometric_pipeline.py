"""Pipelines: seeds, cells, fusing, what the teacher sees, presets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from glocal.config import Config, from_yaml, to_yaml
from glocal.errors import ConfigError
from glocal.views.photometric import Operation, OperationBase, apply_pipeline, presets
from glocal.views.photometric.blur import GaussianBlur, Sharpness
from glocal.views.photometric.colour import ColorJitter, Grayscale
from glocal.views.photometric.composite import RandAugment, SomeOf
from glocal.views.photometric.erasing import RandomErasing
from glocal.views.photometric.histogram import AutoContrast, Equalise
from glocal.views.photometric.pipeline import draw_steps, fold_cells, run_for_both, unfold_cells
from glocal.views.photometric.tone import Invert, Posterise, Solarise, SolariseAdd
from glocal.views.photometric.union import OPERATIONS
from glocal.views.photometric.warping import Rotate
from glocal.views.randomness import fold_in, uniforms

ALL_PRESETS = {
    "dino_global_1": presets.dino_global_1(),
    "dino_global_2": presets.dino_global_2(),
    "dino_local": presets.dino_local(),
    "patch_code": presets.patch_code(),
    "patch_code_2": presets.patch_code(2, probability=0.5),
    "patch_literal": presets.patch_literal(),
    "mugs_strong": presets.mugs_strong(),
    "both_units": presets.dino_global_2() + presets.patch_code(),
}
SIMPLE: list[OperationBase] = [
    ColorJitter(), ColorJitter(form="exact"), Grayscale(), GaussianBlur(), GaussianBlur(kernel=(5, 1)), Solarise(),
    Posterise(), Sharpness(), AutoContrast(), Equalise(), Invert(), SolariseAdd(), Rotate(), RandomErasing(),
    SomeOf(pool=(Posterise(), Invert(), Solarise()), count=2),
]  # fmt: skip
# Whatever operation the package has is in the suite, whether somebody thought of it here or not.
SIMPLE += [kind() for kind in OPERATIONS.values() if kind not in map(type, SIMPLE)]


def views(count: int = 4, height: int = 48, width: int = 32, seed: int = 0) -> Tensor:
    return uniforms(torch.arange(count * 3 * height * width) + 10**6 * seed, 1).view(count, 3, height, width)


def patchwise(pipeline: tuple[OperationBase, ...]) -> tuple[OperationBase, ...]:
    return tuple(step.model_copy(update={"unit": "patch"}) for step in pipeline)


def slow_pipeline(pixels: Tensor, pipeline: tuple[OperationBase, ...], seeds: Tensor, patch: int) -> Tensor:
    """One unit at a time, one operation at a time: the definition, with neither folding nor fusing."""
    out = pixels.clone()
    for position, step in enumerate(pipeline):
        for view in range(len(out)):
            seed = fold_in(seeds[view : view + 1], position)
            height, width = out.shape[-2:]
            side_y, side_x = (patch, patch) if step.unit == "patch" else (height, width)
            columns = width // side_x
            for cell in range((height // side_y) * columns):
                row, column = cell // columns * side_y, cell % columns * side_x
                here = (
                    slice(view, view + 1),
                    slice(None),
                    slice(row, row + side_y),
                    slice(column, column + side_x),
                )
                drawn = uniforms(fold_in(seed, cell) if step.unit == "patch" else seed, 1 + step.draws)
                if drawn[0, 0] < step.probability:
                    out[here] = step.transform(out[here].contiguous(), drawn[:, 1:])
    return out


@pytest.mark.parametrize("operation", SIMPLE, ids=lambda o: str(o.model_dump()["op"]))
@pytest.mark.parametrize("unit", ["image", "patch"])
def test_each_operation_equals_the_loop_over_units(operation: OperationBase, unit: str) -> None:
    """Tolerance 1e-5 (of 1)."""
    pipeline = (operation.model_copy(update={"unit": unit, "probability": 0.7}),)
    pixels, seeds = views(), torch.arange(4) * 7919
    ours = apply_pipeline(pixels, pipeline, seeds, 16)
    torch.testing.assert_close(ours, slow_pipeline(pixels, pipeline, seeds, 16), atol=1e-5, rtol=0)
    assert not torch.equal(ours, pixels)


@pytest.mark.parametrize("name", [n for n in ALL_PRESETS if n not in ("dino_global_1", "dino_local")])
def test_presets_equal_the_loop_over_units(name: str) -> None:
    """Tolerance 1e-5 (of 1), with jitter in the exact form, where fusing leaves clipping alone."""
    pipeline = tuple(
        step.model_copy(update={"form": "exact"}) if isinstance(step, ColorJitter) else step
        for step in ALL_PRESETS[name]
    )
    pixels, seeds = views(3), torch.tensor([5, -6, 2**60])
    torch.testing.assert_close(
        apply_pipeline(pixels, pipeline, seeds, 16),
        slow_pipeline(pixels, pipeline, seeds, 16),
        atol=1e-5,
        rtol=0,
    )


def test_fused_colour_differs_only_by_clipping_in_between() -> None:
    """Tolerance 1e-5 (of 1) on pixels that no step clips."""
    pipeline = (ColorJitter(), Grayscale(probability=0.5), ColorJitter(hue=0.0))
    pixels, seeds = views() * 0.2 + 0.3, torch.arange(4)
    torch.testing.assert_close(
        apply_pipeline(pixels, pipeline, seeds, 16),
        slow_pipeline(pixels, pipeline, seeds, 16),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("name", list(ALL_PRESETS))
def test_a_view_depends_on_nothing_but_its_seed(name: str) -> None:
    """Bit-identical whatever the batch holds, and between calls."""
    pixels, seeds = views(40), torch.arange(40)
    together = apply_pipeline(pixels, ALL_PRESETS[name], seeds, 16)
    assert torch.equal(together, apply_pipeline(pixels, ALL_PRESETS[name], seeds, 16))
    for some in ([3], [39, 7, 20], list(range(39, -1, -1))):
        assert torch.equal(apply_pipeline(pixels[some], ALL_PRESETS[name], seeds[some], 16), together[some])
    assert not torch.equal(apply_pipeline(pixels, ALL_PRESETS[name], seeds + 1, 16), together)


@pytest.mark.parametrize("name", ["dino_global_2", "patch_code", "both_units"])
def test_the_cpu_path_equals_the_masked_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tolerance 1e-6 (of 1): the device's way (everything computed, a mask selects) against subsets of units."""
    from glocal.views.photometric import operation

    def masked(chosen: Tensor, pixels: Tensor, transform: object) -> Tensor:
        return torch.where(chosen[:, None, None, None], transform(pixels, slice(None)), pixels)  # type: ignore[operator]

    pixels, seeds = views(6), torch.arange(6)
    subsets = apply_pipeline(pixels, ALL_PRESETS[name], seeds, 16)
    monkeypatch.setattr(operation, "transform_where", masked)
    torch.testing.assert_close(
        apply_pipeline(pixels, ALL_PRESETS[name], seeds, 16), subsets, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.8, 1.0])
@pytest.mark.parametrize("unit", ["image", "patch"])
def test_probability_law(probability: float, unit: str) -> None:
    """4,096 units: within four standard deviations."""
    pixels = torch.zeros(4096, 3, 1, 1) if unit == "image" else torch.zeros(16, 3, 16, 16)
    out = apply_pipeline(pixels, (Invert(probability=probability, unit=unit),), torch.arange(len(pixels)), 1)
    share, spread = out[:, 0].mean().item(), 4 * (probability * (1 - probability) / 4096) ** 0.5
    assert abs(share - probability) <= spread


def test_fold_and_unfold() -> None:
    pixels = views(2, 8, 12)
    cells = fold_cells(pixels, 4)
    assert cells.shape == (12, 3, 4, 4)
    torch.testing.assert_close(cells[6 + 1 * 3 + 2], pixels[1, :, 4:8, 8:12], atol=0, rtol=0)
    assert torch.equal(unfold_cells(cells, 8, 12), pixels)


def test_cells_never_mix() -> None:
    """Changing one cell of the input changes that cell of the output and no other."""
    pipeline = patchwise(presets.dino_global_1()) + presets.patch_code()
    pixels, seeds = views(1), torch.tensor([3])
    other = pixels.clone()
    other[:, :, 16:32, 0:16] = 0.5
    changed = (apply_pipeline(pixels, pipeline, seeds, 16) != apply_pipeline(other, pipeline, seeds, 16)).any(
        1
    )[0]
    assert bool(changed[16:32, 0:16].any())
    changed[16:32, 0:16] = False
    assert not bool(changed.any())


def for_both(
    pixels: Tensor, pipeline: Sequence[OperationBase], seeds: Tensor
) -> tuple[Tensor, Tensor | None]:
    steps = draw_steps(pipeline, seeds, 16, (pixels.shape[2], pixels.shape[3]))
    return run_for_both(steps, pixels, slice(0, len(pixels)), 16)


@pytest.mark.parametrize("where", [0, 1, 2, 3])
@pytest.mark.parametrize("unit", ["image", "patch"])
def test_student_only_operations(where: int, unit: str) -> None:
    """The student's pixels are those of the whole pipeline; the teacher's are drawn as if the step were there."""
    steps: list[OperationBase] = [
        ColorJitter(),
        Grayscale(probability=0.5),
        GaussianBlur(probability=0.5),
        Posterise(unit="patch"),
    ]
    steps[where] = steps[where].model_copy(update={"seen_by": "student", "unit": unit})
    pixels, seeds = views(), torch.arange(4)
    student, teacher = for_both(pixels, steps, seeds)
    assert teacher is not None and not torch.equal(student, teacher)
    assert torch.equal(student, apply_pipeline(pixels, steps, seeds, 16))
    never = [s.model_copy(update={"probability": 0.0}) if s.seen_by == "student" else s for s in steps]
    torch.testing.assert_close(teacher, apply_pipeline(pixels, never, seeds, 16), atol=1e-6, rtol=0)


def test_teacher_is_none_when_both_see_the_same_and_clean_when_all_is_for_the_student() -> None:
    pixels, seeds = views(), torch.arange(4)
    assert for_both(pixels, presets.dino_local(), seeds)[1] is None
    _, teacher = for_both(pixels, presets.patch_code(seen_by="student"), seeds)
    assert teacher is not None and torch.equal(teacher, pixels)


def test_input_is_left_alone_and_uint8_equals_float() -> None:
    """Tolerance 1e-6 (of 1) between the two dtypes, on all 256 levels."""
    levels = (
        torch.arange(256, dtype=torch.uint8).repeat(3 * 48).view(1, 3, 192, 64)[:, :, :48, :32].contiguous()
    )
    levels = torch.cat([levels, torch.zeros_like(levels), torch.full_like(levels, 255)])
    floats, seeds = levels.float() / 255, torch.arange(3)
    before = floats.clone()
    for name, pipeline in ALL_PRESETS.items():
        ours = apply_pipeline(levels, pipeline, seeds, 16)
        assert ours.dtype == torch.float32 and ours.min() >= 0 and ours.max() <= 1 + 1e-6
        torch.testing.assert_close(
            ours, apply_pipeline(floats, pipeline, seeds, 16), atol=2e-6, rtol=0, msg=name
        )
        assert torch.equal(floats, before)
    torch.testing.assert_close(apply_pipeline(levels, (), seeds, 16), floats, atol=1e-7, rtol=0)


def test_empty_batch_and_non_contiguous_views() -> None:
    assert apply_pipeline(torch.rand(0, 3, 32, 32), ALL_PRESETS["both_units"], torch.arange(0), 16).shape == (
        0,
        3,
        32,
        32,
    )
    wide = views(8)
    some, seeds = wide[::2], torch.arange(4)
    for pipeline in ALL_PRESETS.values():
        expected = apply_pipeline(some.contiguous(), pipeline, seeds, 16)
        assert torch.equal(apply_pipeline(some, pipeline, seeds, 16), expected)


@pytest.mark.parametrize(("size", "patch"), [((40, 32), 16), ((32, 40), 16), ((8, 8), 16), ((32, 32), 0)])
def test_views_that_patches_do_not_divide(size: tuple[int, int], patch: int) -> None:
    pixels = torch.rand(1, 3, *size)
    with pytest.raises(ConfigError, match=rf"{size[0]}x{size[1]}.*patch_size {patch}"):
        apply_pipeline(pixels, (Invert(unit="patch"),), torch.arange(1), patch)
    assert apply_pipeline(pixels, (Invert(),), torch.arange(1), patch).shape == pixels.shape


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    patch=st.sampled_from([1, 2, 4, 8]),
    seed=st.integers(-(2**62), 2**62),
)
def test_any_grid_stays_in_range_and_equals_the_loop(rows: int, columns: int, patch: int, seed: int) -> None:
    pixels, seeds = views(1, rows * patch, columns * patch), torch.tensor([seed])
    pipeline = patchwise((ColorJitter(), GaussianBlur(probability=0.5), Sharpness())) + presets.patch_code()
    ours = apply_pipeline(pixels, pipeline, seeds, patch)
    assert ours.min() >= 0 and ours.max() <= 1 + 1e-6
    torch.testing.assert_close(ours, slow_pipeline(pixels, pipeline, seeds, patch), atol=1e-5, rtol=0)


def test_some_of_draws_without_replacement_in_random_order() -> None:
    """Three markers whose order can be read off the result; every ordered pair comes up equally often."""
    pool = (Invert(), Posterise(bits=1), SolariseAdd(amount=60))
    operation, pixels = SomeOf(pool=pool, count=2), torch.full((3000, 3, 1, 1), 100 / 255)
    out = (
        operation.transform(pixels, uniforms(torch.arange(3000), operation.draws))[:, 0, 0, 0] * 255
    ).round()
    expected = {
        "invert, posterise": 128, "posterise, invert": 255, "invert, add": 155, "add, invert": 95, "posterise, add": 60,
        "add, posterise": 128,
    }  # fmt: skip
    counts = {level: int((out == level).sum()) for level in set(expected.values())}
    assert sum(counts.values()) == 3000
    for level, count in counts.items():
        assert abs(count - 500 * list(expected.values()).count(level)) < 120


def test_patch_code_changes_as_many_patches_as_asked() -> None:
    pixels, seeds = views(16, 64, 64), torch.arange(16)
    out = apply_pipeline(pixels, presets.patch_code(probability=0.25), seeds, 8)
    changed = (fold_cells(out, 8) != fold_cells(pixels, 8)).flatten(1).any(1).double().mean().item()
    assert abs(changed - 0.25) < 0.06


def test_operations_are_read_from_yaml_and_bad_ones_are_refused() -> None:
    class Holder(Config):
        steps: tuple[Operation, ...]

    for pipeline in ALL_PRESETS.values():
        assert from_yaml(Holder, to_yaml(Holder(steps=pipeline))).steps == pipeline
    bad = [
        "steps: [{op: jitter}]",
        "steps: [{op: grayscale, probability: 1.5}]",
        "steps: [{op: grayscale, unit: pixel}]",
        "steps: [{op: gaussian_blur, sigma: [2.0, 0.1]}]",
        "steps: [{op: gaussian_blur, kernel: [4, 1]}]",
        "steps: [{op: posterise, bits: 9}]",
        "steps: [{op: random_erasing, area: [0.0, 0.3]}]",
        "steps: [{op: some_of, count: 3, pool: [{op: invert}]}]",
        "steps: [{op: some_of, count: 1, pool: [{op: invert, unit: patch}]}]",
    ]
    for text in bad:
        with pytest.raises(ConfigError):
            from_yaml(Holder, text)
    with pytest.raises(ValidationError):
        RandAugment(count=16)


def test_a_view_of_one_patch_is_one_cell() -> None:
    """Folding such a view copies nothing; writing it back onto itself must not fail."""
    pixels, seeds = torch.rand(1, 3, 8, 8), torch.tensor([5])
    by_patch = apply_pipeline(pixels, presets.patch_literal(), seeds, 8)
    assert by_patch.shape == pixels.shape and not torch.equal(by_patch, pixels)
    assert torch.equal(
        apply_pipeline(pixels.repeat(3, 1, 1, 1), presets.patch_literal(), torch.tensor([1, 5, 7]), 8)[1:2],
        by_patch,
    )
