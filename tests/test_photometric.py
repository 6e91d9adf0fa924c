"""Every photometric operation against PIL or a slow NumPy version. Tolerances are in levels of 255 unless said otherwise."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import largest_difference, levels, picture, to_tensor
from PIL import Image, ImageEnhance, ImageOps

from glocal.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from glocal.views.photometric import apply_pipeline, blur, colour, erasing, histogram, tone, warping
from glocal.views.photometric.composite import RAND_AUGMENT_STEPS, RandAugment
from glocal.views.photometric.operation import OperationBase
from glocal.views.randomness import uniforms


@pytest.mark.parametrize("threshold", [1, 100, 128, 255, 256])
def test_solarise_equals_pil(threshold: int) -> None:
    image = picture()
    ours = tone.solarise(to_tensor(image), torch.tensor([float(threshold)]))
    assert largest_difference(ours, ImageOps.solarize(image, threshold)) < 1e-3


def test_default_solarise_is_the_general_one_at_every_level() -> None:
    ramp = (torch.arange(256.0) / 255).expand(1, 3, 1, 256)
    fast = tone.Solarise().transform(ramp, torch.zeros(1, 0))
    torch.testing.assert_close(fast, tone.solarise(ramp, 128.0), atol=0, rtol=0)
    assert (fast[0, 0, 0, [0, 127, 128, 255]] * 255).round().tolist() == [0, 127, 127, 0]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 7, 8])
def test_posterise_equals_pil_at_every_level(bits: int) -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2))
    ours = tone.posterise(to_tensor(ramp), torch.tensor([float(bits)]))
    assert largest_difference(ours, ImageOps.posterize(ramp, bits)) < 1e-3
    torch.testing.assert_close(tone.posterise(to_tensor(ramp), bits), ours)


def test_invert_and_solarise_add_on_known_levels() -> None:
    values = torch.tensor([0.0, 100, 127, 128, 255]).expand(1, 3, 1, 5) / 255
    assert (tone.invert(values) * 255).round()[0, 0, 0].tolist() == [255, 155, 128, 127, 0]
    added = tone.solarise_add(values, torch.tensor([200.0]))
    assert (added * 255).round()[0, 0, 0].tolist() == [200, 255, 255, 128, 255]


@pytest.mark.parametrize("factor", [0.1, 0.6, 1.0, 1.4, 1.9])
def test_single_adjustments_equal_pil(factor: float) -> None:
    """Tolerance 1.5: PIL rounds the grayscale version and truncates the blend."""
    image, factors = picture(), torch.tensor([factor])
    pairs = [
        (colour.adjust_brightness, ImageEnhance.Brightness),
        (colour.adjust_contrast, ImageEnhance.Contrast),
        (colour.adjust_saturation, ImageEnhance.Color),
        (blur.sharpen, ImageEnhance.Sharpness),
    ]
    for ours, theirs in pairs:
        limit = (
            1.5 if ours is not blur.sharpen else 2.5
        )  # rounding of the smoothed picture times |1 - factor|, both ends
        assert largest_difference(ours(to_tensor(image), factors), theirs(image).enhance(factor)) < limit, (
            theirs
        )


def test_sharpen_small_and_large_units_agree() -> None:
    """Tolerance 1e-5: the matrix route (sides up to 32) against the route of shifted pictures."""
    pixels = torch.rand(2, 3, 9, 40)
    wide = blur.sharpen(pixels, torch.tensor([2.0, 0.3]))
    narrow = blur.sharpen(pixels[..., :32], torch.tensor([2.0, 0.3]))
    torch.testing.assert_close(narrow[..., :31], wide[..., :31], atol=1e-5, rtol=0)
    torch.testing.assert_close(narrow[..., 31], pixels[..., 31], atol=0, rtol=0)  # the border stays
    torch.testing.assert_close(blur.sharpen(pixels, 2.0)[:1], wide[:1], atol=1e-6, rtol=0)


def test_grayscale_equals_pil() -> None:
    """Tolerance 0.6: PIL rounds to a level."""
    image = picture()
    ours = colour.Grayscale().transform(to_tensor(image), torch.zeros(1, 0))
    assert largest_difference(ours, ImageOps.grayscale(image).convert("RGB")) < 0.6


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.0, 0.07, 0.1, 0.5])
def test_hue_equals_the_standard_librarys_hsv(turns: float) -> None:
    """Tolerance 1e-5 (of 1), on floats."""
    pixels = to_tensor(picture(12, 10))
    ours = colour.adjust_hue(pixels, torch.tensor([turns]))[0].flatten(1).T
    for before, after in zip(pixels[0].flatten(1).T.tolist(), ours.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        assert colorsys.hsv_to_rgb((hue + turns) % 1.0, saturation, value) == pytest.approx(after, abs=1e-5)


def test_exact_jitter_follows_the_order_of_each_unit() -> None:
    pixels = torch.cat([to_tensor(picture(seed=s)) for s in range(3)])
    factors = torch.tensor([[1.4, 0.6, 1.2, 0.1], [0.6, 1.4, 0.8, -0.1], [1.3, 1.3, 1.1, 0.05]])
    order = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
    steps = [colour.adjust_brightness, colour.adjust_contrast, colour.adjust_saturation, colour.adjust_hue]
    ours = colour.jitter_exact(pixels, factors, order)
    for unit in range(3):
        expected = pixels[unit : unit + 1]
        for number in order[unit].tolist():
            expected = steps[number](expected, factors[unit : unit + 1, number])
        torch.testing.assert_close(ours[unit : unit + 1], expected)
    other = colour.jitter_exact(pixels, factors, order.flip(1))
    assert (other - ours).abs().max() > 0.01  # order matters where values clip


def slow_affine(
    rgb: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float
) -> np.ndarray:
    """Float64 brightness, contrast, saturation and YIQ hue in this order, clipped at the end only."""
    luma = np.array([0.299, 0.587, 0.114])
    values = rgb * brightness
    values = contrast * values + (1 - contrast) * (values @ luma).mean()
    gray = (values @ luma)[..., None]
    values = gray + saturation * (values - gray)
    to_yiq = np.array([luma, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
    yiq = values @ to_yiq.T
    cos, sin = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    i, q = yiq[..., 1].copy(), yiq[..., 2].copy()
    yiq[..., 1], yiq[..., 2] = cos * i + sin * q, cos * q - sin * i
    return np.asarray((yiq @ np.linalg.inv(to_yiq).T).clip(0, 1))


@pytest.mark.parametrize(
    "factors", [(1.4, 0.6, 1.2, 0.1), (0.6, 1.4, 0.8, -0.1), (1.0, 1.0, 1.0, 0.0), (0.9, 1.0, 0.0, 0.5)]
)
def test_affine_jitter_equals_the_slow_version(factors: tuple[float, ...]) -> None:
    """Tolerance 1e-5 (of 1)."""
    pixels = to_tensor(picture())
    ours = colour.apply_colour_map(pixels, colour.jitter_map(*torch.tensor(factors)[:, None]))
    expected = slow_affine(pixels[0].permute(1, 2, 0).double().numpy(), *factors)
    assert np.abs(ours[0].permute(1, 2, 0).numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_affine_and_exact_agree_for_one_adjustment(name: str) -> None:
    """Tolerance 1e-5 (of 1): with one adjustment there is nothing between which to clip."""
    strengths = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, name: 0.4}
    pixels, draws = to_tensor(picture()).repeat(8, 1, 1, 1), uniforms(torch.arange(8), 5)
    affine = colour.ColorJitter(**strengths).transform(pixels, draws)
    exact = colour.ColorJitter(**strengths, form="exact").transform(pixels, draws)
    torch.testing.assert_close(affine, exact, atol=1e-5, rtol=0)


def test_affine_differs_from_exact_by_a_stated_amount() -> None:
    """DINO's strengths, 64 draws of a colourful picture: 5.3 levels in the mean (5.8 on photographs)."""
    pixels, draws = to_tensor(picture()).repeat(64, 1, 1, 1), uniforms(torch.arange(64), 5)
    affine = colour.ColorJitter().transform(pixels, draws)
    exact = colour.ColorJitter(form="exact").transform(pixels, draws)
    mean = (affine - exact).abs().mean().item() * 255
    assert 5.0 < mean < 5.7


def test_hue_turns_the_same_way_in_both_forms() -> None:
    red = torch.tensor([0.8, 0.2, 0.2]).view(1, 3, 1, 1)
    one, turn = torch.ones(1), torch.full((1,), 0.1)
    affine = colour.apply_colour_map(red, colour.jitter_map(one, one, one, turn)).flatten()
    exact = colour.adjust_hue(red, turn).flatten()
    assert affine[1] > affine[2] and exact[1] > exact[2]  # red turns towards yellow


def test_colour_maps_compose() -> None:
    """Tolerance 1e-5 (of 1), on low contrast so that nothing clips in between."""
    pixels = torch.rand(4, 3, 8, 8) * 0.2 + 0.4
    draws = uniforms(torch.arange(4), 10)
    jitter = colour.ColorJitter(brightness=0.2, contrast=0.2)
    first, second = jitter.colour_map(draws[:, :5]), jitter.colour_map(draws[:, 5:])
    assert first is not None and second is not None
    fused = colour.apply_colour_map(pixels, first.then(second))
    torch.testing.assert_close(
        fused, colour.apply_colour_map(colour.apply_colour_map(pixels, first), second), atol=1e-5, rtol=0
    )


def test_auto_contrast_equals_pil() -> None:
    """Tolerance 1: PIL truncates."""
    image = picture()
    for image in (
        picture(),
        ImageEnhance.Contrast(picture()).enhance(0.4),
        Image.new("RGB", (20, 20), (30, 200, 0)),
    ):
        assert (
            largest_difference(histogram.auto_contrast(to_tensor(image)), ImageOps.autocontrast(image))
            <= 1.001
        )


def test_equalise_equals_pil() -> None:
    dark = ImageEnhance.Brightness(picture()).enhance(0.3)
    for image in (picture(), dark, Image.new("RGB", (20, 20), (30, 200, 0)), picture(5, 4)):
        assert largest_difference(histogram.equalise(to_tensor(image)), ImageOps.equalize(image)) < 1e-3


def test_warps_equal_pil() -> None:
    """Bilinear, tolerance 1.5 levels (PIL truncates) but at 0.5 % of the pixels, where rounding decides what is outside."""
    image = picture(60, 40)
    pixels, linear = to_tensor(image), torch.tensor([False])
    fill = (124, 116, 104)
    cases = [
        (
            warping.rotation(torch.tensor([23.0]), 60, 40),
            image.rotate(23, Image.Resampling.BILINEAR, fillcolor=fill),
        ),
        (warping.shear(torch.tensor([0.3]), "x"), (1, 0.3, 0, 0, 1, 0)),
        (warping.shear(torch.tensor([-0.2]), "y"), (1, 0, 0, -0.2, 1, 0)),
        (warping.translation(torch.tensor([7.3]), "x"), (1, 0, 7.3, 0, 1, 0)),
        (warping.translation(torch.tensor([-11.0]), "y"), (1, 0, 0, 0, 1, -11.0)),
    ]
    for inverse, expected in cases:
        if isinstance(expected, tuple):
            how = Image.Resampling.BILINEAR
            expected = image.transform(image.size, Image.Transform.AFFINE, expected, how, fillcolor=fill)
        difference = np.abs(
            levels(warping.warp(pixels, inverse, linear)) - np.asarray(expected, dtype=np.float64)
        )
        assert (difference > 1.5).mean() < 0.005


def test_bicubic_is_chosen_per_unit() -> None:
    pixels = torch.rand(2, 3, 20, 20)
    inverse = warping.rotation(torch.tensor([10.0, 10.0]), 20, 20)
    mixed = warping.warp(pixels, inverse, torch.tensor([False, True]))
    torch.testing.assert_close(mixed[:1], warping.warp(pixels[:1], inverse[:1], torch.tensor([False])))
    assert (mixed[1] - warping.warp(pixels, inverse, torch.tensor([False, False]))[1]).abs().max() > 1e-3


def test_what_moves_pixels_says_so() -> None:
    moving: list[type[OperationBase]] = [
        warping.Rotate,
        warping.ShearX,
        warping.ShearY,
        warping.TranslateX,
        warping.TranslateY,
        RandAugment,
    ]
    assert all(kind.moves_pixels for kind in moving)
    standing: list[type[OperationBase]] = [
        colour.ColorJitter, blur.GaussianBlur, tone.Solarise, erasing.RandomErasing,
    ]  # fmt: skip
    assert not any(kind.moves_pixels for kind in standing)


def test_erasing_fills_the_box_and_nothing_else() -> None:
    pixels = torch.full((2, 3, 20, 30), 0.5)
    boxes = torch.tensor([[2, 3, 10, 12], [0, 0, 0, 0]])
    out = erasing.erase(pixels, boxes, torch.tensor([7, 8]))
    changed = (out != pixels).any(1)
    assert bool(changed[0, 2:12, 3:15].all()) and int(changed[0].sum()) == 120 and int(changed[1].sum()) == 0
    assert out.min() >= 0 and out.max() <= 1
    torch.testing.assert_close(
        out[:1], erasing.erase(pixels[:1], boxes[:1], torch.tensor([7])), atol=0, rtol=0
    )


def test_noise_has_imagenets_statistics() -> None:
    noise = erasing._noise(torch.arange(20000), "valid")
    torch.testing.assert_close(noise.mean(0), torch.tensor(IMAGENET_MEAN), atol=0.01, rtol=0)
    torch.testing.assert_close(noise.std(0), torch.tensor(IMAGENET_STD), atol=0.012, rtol=0)


@pytest.mark.parametrize(("noise", "deviation"), [("valid", 0.97), ("unit", 4.42)])
def test_erased_noise_after_normalisation(noise: str, deviation: float) -> None:
    """Mugs' published runs erase with standard normal values before they normalise."""
    operation = erasing.RandomErasing(probability=1.0, noise=noise, area=(0.9, 0.95), aspect=(1.0, 1.0))
    seeds = torch.arange(40)
    erased = apply_pipeline(torch.full((40, 3, 64, 64), 0.5), (operation,), seeds, 16)
    values = erased[(erased != 0.5)].view(-1)
    assert float(values.std()) / 0.226 == pytest.approx(deviation, rel=0.03)
    assert (values.min() < 0) == (noise == "unit")


def test_boxes_follow_their_law() -> None:
    draws = uniforms(torch.arange(4000), 40).view(-1, 10, 4)
    top, left, tall, wide = erasing.draw_boxes(draws, (0.02, 1 / 3), (0.3, 3.3), 200, 100).unbind(1)
    assert bool((tall < 200).all() and (wide < 100).all() and (tall > 0).all() and (wide > 0).all())
    assert bool(
        (top >= 0).all() and (left >= 0).all() and (top + tall <= 200).all() and (left + wide <= 100).all()
    )
    share = (tall * wide).double() / 20000
    assert share.min() > 0.017 and share.max() < 0.34 and 0.15 < share.mean() < 0.19
    ratio = tall.double() / wide
    assert ratio.min() > 0.27 and ratio.max() < 3.8


def test_rand_augment_draws_without_replacement_and_near_nine() -> None:
    operation, draws = RandAugment(), uniforms(torch.arange(6000), RandAugment().draws)
    which = operation.drawn(draws)
    assert bool((which[:, 0] != which[:, 1]).all())
    share = torch.bincount(which.flatten(), minlength=15).double() / which.numel()
    assert (share - 1 / 15).abs().max() < 0.01
    level = operation.levels(draws[:, 15:20]) * 10
    assert level.max() <= 10 and abs(level.mean().item() - 9) < 0.03 and abs(level.std().item() - 0.49) < 0.03


def test_rand_augment_steps_at_level_nine() -> None:
    """The constants of rand-m9-inc1: 1 bit, thresholds 26 and 99 of 255, factors 0.19 and 1.81, 27 degrees."""
    pixels = to_tensor(picture())
    level, plus, linear = torch.tensor([0.9]), torch.tensor([1.0]), torch.tensor([False])
    ours = {name: step(pixels, level, plus, linear) for name, step in RAND_AUGMENT_STEPS.items()}
    factor = torch.tensor([1.81])
    expected = {
        "posterise": tone.posterise(pixels, 1),
        "solarise": tone.solarise(pixels, 26.0),
        "solarise_add": tone.solarise_add(pixels, 99.0),
        "colour": colour.adjust_saturation(pixels, factor),
        "contrast": colour.adjust_contrast(pixels, factor),
        "brightness": colour.adjust_brightness(pixels, factor),
        "sharpness": blur.sharpen(pixels, factor),
        "rotate": warping.warp(pixels, warping.rotation(torch.tensor([27.0]), 48, 40), linear),
        "shear_x": warping.warp(pixels, warping.shear(torch.tensor([0.27]), "x"), linear),
        "translate_y": warping.warp(pixels, warping.translation(torch.tensor([0.405 * 48]), "y"), linear),
    }
    assert len(ours) == 15
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=0, msg=name)
    down = RAND_AUGMENT_STEPS["brightness"](pixels, level, -plus, linear)
    torch.testing.assert_close(down, pixels * 0.19, atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(-(2**62), 2**62), side=st.integers(2, 36), dark=st.booleans())
def test_output_stays_in_range(seed: int, side: int, dark: bool) -> None:
    operations = [
        colour.ColorJitter(), colour.ColorJitter(form="exact", brightness=1.0), colour.Grayscale(), blur.GaussianBlur(),
        blur.Sharpness(), blur.Sharpness(factor=0.0), tone.Solarise(threshold=60), tone.Posterise(), tone.Invert(),
        tone.SolariseAdd(), histogram.AutoContrast(), histogram.Equalise(), warping.Rotate(), RandAugment(each=1.0),
        erasing.RandomErasing(),
    ]  # fmt: skip
    pixels = uniforms(torch.arange(2 * 3 * side * side) + seed, 1).view(2, 3, side, side) * (
        0.05 if dark else 1.0
    )
    before = pixels.clone()
    for operation in operations:
        out = operation.transform(pixels, uniforms(torch.tensor([seed, seed + 1]), operation.draws))
        assert out.shape == pixels.shape and bool(torch.isfinite(out).all())
        assert out.min() >= -1e-6 and out.max() <= 1 + 1e-6, operation.op  # type: ignore[attr-defined]
        assert torch.equal(pixels, before), operation.op  # type: ignore[attr-defined]
