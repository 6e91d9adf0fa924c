"""`preset=auto`: what is settled from what is known before a run, by small rules that each give a value and its reason.

A named preset is the start: the one nearest to the images and the machine. Each rule takes the scale so far and what is
known, and returns the scale with its own settings replaced, and what it chose. A rule that was measured says so; the
others are reasoned, and say that. docs/auto.md has them as a table, and what comes out of them in eight situations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from glocal.models.backbone import SIZES, BackboneConfig, Dimensions
from glocal.recipes.known import Known
from glocal.recipes.scales import SCALES, Scale, teacher_momentum
from glocal.schedules import Schedule
from glocal.training.config import RunConfig
from glocal.views.groups import Pipeline, ViewGroup
from glocal.views.photometric.colour import ColorJitter, Grayscale

CORE_FLOPS = 1.3e11
"""FLOPs a second of one core: 1.55e14 took 1,142 to 1,203 CPU seconds, with bfloat16 instructions (docs/ladder.md)."""
GPU_FLOPS = 1e14
"""FLOPs a second of one GPU. An assumption to plan by, not measured here."""
LARGE_BUDGET = 1e16
"""FLOPs from which on 160-pixel views are worth having without a GPU: half a day of two cores. Reasoned."""
MEASURED_FLOPS, MEASURED_PARAMETERS = 1.5e14, 6e5
"""The flagship's run on CIFAR-10, where the line of model sizes starts."""
LARGER = (Dimensions(192, 4, 6), SIZES["tiny"], SIZES["small"], SIZES["base"])
"""Backbones that a long run may take in place of its preset's."""


class Choice(NamedTuple):
    """A setting, what a rule made of it, and why."""

    setting: str
    value: Any
    why: str

    def __str__(self) -> str:
        return f"{self.setting}: {in_words(self.value)}, because {self.why}"


class Settled(NamedTuple):
    """What the rules make of a situation: a scale for any recipe, and about how many FLOPs the run will have."""

    preset: Choice
    scale: Scale
    choices: list[Choice]
    flops: float


Rule = Callable[[Scale, Known], tuple[Scale, Choice]]


def settle(known: Known) -> Settled:
    """Apply all rules.

    >>> settle(Known(images=50_000, side=32)).scale.backbone.dimensions.embed_dim
    128
    """
    preset, choices = nearest_preset(known), []
    scale = SCALES[preset.value]()
    for rule in RULES:
        scale, choice = rule(scale, known)
        choices.append(choice)
    return Settled(preset, scale, choices, flops_of_run(scale, known))


def surviving(choices: list[Choice], config: RunConfig) -> list[Choice]:
    """The choices that hold in a configuration: neither its recipe nor a person settled them otherwise."""
    return [choice for choice in choices if _value_at(config, choice.setting) == choice.value]


def in_words(value: Any) -> str:
    """A setting's value for people."""
    if isinstance(value, Dimensions):
        return f"{value.embed_dim} wide, {value.depth} deep, {value.num_heads} heads"
    if isinstance(value, Schedule):
        return f"{value.start:g} to {value.end:g}"
    if isinstance(value, tuple):
        return " | ".join(", ".join(operation.op for operation in pipeline) for pipeline in value)
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------------ where to start


def nearest_preset(known: Known) -> Choice:
    """The named preset nearest to the images' size and number and to what can be computed."""
    images = f"there are {known.images:,} images of about {known.side} pixels"
    if known.side <= 40:
        return Choice("preset", "cifar", f"images are about {known.side} pixels on the shorter side")
    given = flops_given(known)
    large = bool(known.gpus) if given is None else given >= LARGE_BUDGET
    if not large or known.side < 128:
        reason = (
            "photographs need more compute to be looked at in detail"
            if known.side >= 128
            else "no larger ones"
        )
        return Choice("preset", "small", f"{images}: {reason}")
    if known.images < 100_000:
        return Choice(
            "preset", "medium", f"{images} and compute for ViT-S/16, too few for ImageNet's settings"
        )
    return Choice("preset", "imagenet", f"{images} and compute for them")


def flops_given(known: Known) -> float | None:
    """The budget, where it was asked in FLOPs or minutes."""
    if known.length is None or known.length.unit not in ("flops", "minutes"):
        return None
    speed = known.gpus * GPU_FLOPS or known.cores * CORE_FLOPS
    return known.length.value * (60 * speed if known.length.unit == "minutes" else 1)


def flops_of_run(scale: Scale, known: Known) -> float:
    """About how many FLOPs the run will have, the student's passes alone."""
    given = flops_given(known)
    if given is not None:
        return given
    unit, value = known.length or ("epochs", scale.training.epochs)
    seen = value * {"epochs": known.images, "steps": scale.training.batch_size}.get(unit, 1)
    return seen * flops_an_image(scale.backbone, scale.views)


def flops_an_image(backbone: BackboneConfig, views: Mapping[str, ViewGroup]) -> float:
    """FLOPs of one image's visit: two for each weight and token, thrice that with the backward pass. Heads and teacher are
    left out: 7 % below what is counted for the flagship.
    """
    width, depth, _ = backbone.dimensions
    total = 0.0
    for group in views.values():
        height, across = (pixels // backbone.patch_size for pixels in group.height_width)
        tokens = 1 + group.keep_patches * height * across
        weights = 3 * backbone.patch_size**2 * width + _parameters(backbone.dimensions)
        total += group.count * tokens * (weights + 2 * tokens * width * depth)
    return 6 * total


# ------------------------------------------------------------------------------------------------------------ the rules


def cut(scale: Scale, known: Known) -> tuple[Scale, Choice]:
    """Views and patches are the preset's; pictures below 24 pixels get views of 16 and patches of 2: the same 8x8 grid."""
    if known.side < 24:
        large = scale.views["global"].model_copy(update={"size": 16})
        backbone = scale.backbone.model_copy(update={"patch_size": 2, "image_size": 16})
        scale = replace(scale, views=scale.views | {"global": large}, backbone=backbone)
    size, patch = scale.views["global"].size, scale.backbone.patch_size
    why = f"with patches of {patch} that is a grid of {scale.backbone.image_size // patch}"
    return scale, Choice("views.global.size", size, why)


def small_crops(scale: Scale, known: Known) -> tuple[Scale, Choice]:
    """The preset's: 0 at 32 pixels, where they cost accuracy in the same time (measured), 4 above, 8 as DINO on ImageNet."""
    group = scale.views.get("local")
    why = "small views teach the student that parts belong to the whole"
    if group is None:
        why = f"of pictures of {known.side} pixels small crops show nothing"
    return scale, Choice("views.local.count", group and group.count, why)


def length(scale: Scale, known: Known) -> tuple[Scale, Choice]:
    """Without a length: 250,000 image visits on cores, at most 400 epochs; on GPUs 128 million, between 10 and 800
    epochs, of which 100 of ImageNet are the published short run. Rounded to one digit. Reasoned.
    """
    if known.length is not None:
        return scale, Choice(f"training.{known.length.unit}", known.length.value, "it was asked for")
    visits, least, most = (1.28e8, 10, 800) if known.gpus else (2.5e5, 1, 400)
    value = float(min(most, max(least, visits / known.images)))
    digit = 10 ** math.floor(math.log10(value))
    value = round(value / digit) * digit
    why = f"{value * known.images:,.0f} image visits are a fair start on {'GPUs' if known.gpus else 'cores'}"
    training = scale.training.model_copy(update={"epochs": value})
    return replace(scale, training=training), Choice("training.epochs", value, why)


def batch(scale: Scale, known: Known) -> tuple[Scale, Choice]:
    """The preset's; on GPUs 128 images each, between 256 and 1,024; never more than half of the images. Measured: 512 a
    step is behind 256 for contrast on CIFAR-10. On GPUs reasoned.
    """
    size, why = scale.training.batch_size, "many steps matter more than large ones"
    if known.gpus:
        size, why = min(1024, max(256, 128 * known.gpus)), f"128 a GPU keep {known.gpus} busy"
    half = 2 ** int(math.log2(max(1, known.images / 2)))
    if half < size:
        why = f"there are {known.images} images"
    size = min(half, size)
    training = scale.training.model_copy(update={"batch_size": size})
    scale = replace(scale, training=training, contrast_batch=min(half, scale.contrast_batch))
    return scale, Choice("training.batch_size", size, why)


def model(scale: Scale, known: Known) -> tuple[Scale, Choice]:
    """Parameters grow with the cube root of the FLOPs, from 0.6 M at 1.5e14 on; never below the preset's.

    Measured: 96 and 128 wide are level after 150 s of two cores, 192 is behind. The power is reasoned: a line through the
    flagship's run passes DINO's ViT-S/16 (1.5e19) and iBOT's ViT-B/16 (2e20) within a factor of two. Not measured.
    """
    flops, present = flops_of_run(scale, known), scale.backbone.dimensions
    wanted = MEASURED_PARAMETERS * (flops / MEASURED_FLOPS) ** (1 / 3)
    larger = [size for size in LARGER if _parameters(size) > _parameters(present)]
    chosen = min([present, *larger], key=lambda size: abs(math.log(_parameters(size) / wanted)))
    if chosen == present:
        return scale, Choice("backbone.dimensions", chosen, f"the run has about {flops:.1e} FLOPs")
    why = f"{flops:.1e} FLOPs are worth about {wanted / 1e6:.1f} M parameters (a rule, not measured)"
    name = next((n for n, size in SIZES.items() if size == chosen), "micro")
    width, depth, heads = chosen if name == "micro" else (None, None, None)
    update = {"size": name, "embed_dim": width, "depth": depth, "num_heads": heads}
    return replace(scale, backbone=scale.backbone.model_copy(update=update)), Choice(
        "backbone.dimensions", chosen, why
    )


def dropped_paths(scale: Scale, known: Known) -> tuple[Scale, Choice]:
    """Stochastic depth of 0.1 from twelve blocks on, as DINO; shallow models have none to spare. Reasoned."""
    value, why = (
        (0.1, "there are twelve blocks")
        if scale.backbone.dimensions.depth >= 12
        else (0.0, "of few blocks none is to spare")
    )
    backbone = scale.backbone.model_copy(update={"drop_path": value})
    return replace(scale, backbone=backbone), Choice("backbone.drop_path", value, why)


def rate(scale: Scale, known: Known) -> tuple[Scale, Choice]:
    """Muon's 0.02 (measured at 96 and 128 wide: 0.01 is 1.9 points of k-NN behind) and 0.01 from 384 wide on (reasoned);
    with AdamW, DINO's rate, which grows with the batch.
    """
    if scale.optimiser.kind == "adamw":
        why = "DINO's; for 256 images a step, and more in proportion"
        return scale, Choice("optimiser.learning_rate", scale.optimiser.learning_rate, why)
    wide = scale.backbone.dimensions.embed_dim >= 384
    value = 0.01 if wide else 0.02
    why = "wide matrices take the safer rate" if wide else "it was best of two at this width"
    optimiser = scale.optimiser.model_copy(update={"muon_learning_rate": value})
    return replace(scale, optimiser=optimiser), Choice("optimiser.muon_learning_rate", value, why)


def warm_up(scale: Scale, known: Known) -> tuple[Scale, Choice]:
    """The preset's: ten epochs as DINO where there are a hundred, else a tenth of the run."""
    value = scale.optimiser.warmup_epochs
    why = "it takes a tenth of the run" if value is None else "so DINO did"
    return scale, Choice("optimiser.warmup_epochs", value, why)


def prototypes(scale: Scale, known: Known) -> tuple[Scale, Choice]:
    """The preset's 1,024; 65,536 from a million images on, 8,192 from a hundred thousand; never more than images.
    1,024 at small scale is measured only as part of its preset.
    """
    most = scale.image_head.prototypes
    if 100_000 <= known.images < 1_000_000:
        most = min(most, 8192)
    value = min(most, 2 ** int(math.log2(known.images)))
    image, patch = (
        head.model_copy(update={"prototypes": min(head.prototypes, value)})
        for head in (scale.image_head, scale.patch_head)
    )
    why = f"{known.images:,} images can be sorted into so many groups"
    return replace(scale, image_head=image, patch_head=patch), Choice(
        "objectives.image.head.prototypes", value, why
    )


def temperature(scale: Scale, known: Known) -> tuple[Scale, Choice]:
    """The preset's: 0.04, or DINO's rise to 0.07 over thirty epochs where there are a hundred thousand images."""
    value = scale.teacher_temperature
    why = "so DINO's longer run had it" if isinstance(value, Schedule) else "a sharp teacher suits short runs"
    return scale, Choice("objectives.image.teacher_temperature", value, why)


def momentum(scale: Scale, known: Known) -> tuple[Scale, Choice]:
    """By the number of steps (`scales.teacher_momentum`)."""
    visits = flops_of_run(scale, known) / flops_an_image(scale.backbone, scale.views)
    value = teacher_momentum(visits / scale.training.batch_size)
    teacher = scale.teacher.model_copy(update={"momentum": value})
    why = f"of about {visits / scale.training.batch_size:,.0f} steps the teacher must average a small part"
    return replace(scale, teacher=teacher), Choice("teacher.momentum", value, why)


def colours(scale: Scale, known: Known) -> tuple[Scale, Choice]:
    """Grey images get no hue, saturation and grayscale: these would change nothing and take time."""
    views = scale.views
    if known.grey:
        views = {
            name: group.model_copy(update={"photometric": tuple(map(_without_colour, group.photometric))})
            for name, group in views.items()
        }
    why = "all images looked at are grey" if known.grey else "images have colour"
    return replace(scale, views=views), Choice("views.global.photometric", views["global"].photometric, why)


RULES: tuple[Rule, ...] = (
    cut, small_crops, length, batch, model, dropped_paths, rate, warm_up, prototypes, temperature, momentum, colours,
)  # fmt: skip


def _without_colour(pipeline: Pipeline) -> Pipeline:
    kept = (operation for operation in pipeline if not isinstance(operation, Grayscale))
    return tuple(
        o.model_copy(update={"saturation": 0.0, "hue": 0.0}) if isinstance(o, ColorJitter) else o
        for o in kept
    )


def _parameters(size: Dimensions) -> float:
    """Of the blocks."""
    return 12.0 * size.depth * size.embed_dim**2


def _value_at(config: RunConfig, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return value
