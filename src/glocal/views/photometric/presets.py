"""Named photometric pipelines of the published recipes."""

from __future__ import annotations

from typing import Literal

from glocal.views.photometric.blur import GaussianBlur, Sharpness
from glocal.views.photometric.colour import ColorJitter, Grayscale
from glocal.views.photometric.composite import RandAugment, SomeOf
from glocal.views.photometric.erasing import Noise, RandomErasing
from glocal.views.photometric.operation import OperationBase
from glocal.views.photometric.tone import Posterise, Solarise
from glocal.views.photometric.union import Operation

Pipeline = tuple[Operation, ...]
Unit = Literal["image", "patch"]
SeenBy = Literal["both", "student"]
Form = Literal["affine", "exact"]
"""Of the colour jitter: ours, or torchvision's, which the `*-reference` recipes use."""


def _dino(
    blur: float, solarise: float, form: Form = "affine", unit: Unit = "image", seen_by: SeenBy = "both"
) -> Pipeline:
    """DINO's operations; flips belong to the geometry."""
    steps: list[OperationBase] = [
        ColorJitter(
            brightness=0.4,
            contrast=0.4,
            saturation=0.2,
            hue=0.1,
            form=form,
            probability=0.8,
            unit=unit,
            seen_by=seen_by,
        ),
        Grayscale(probability=0.2, unit=unit, seen_by=seen_by),
        GaussianBlur(sigma=(0.1, 2.0), probability=blur, unit=unit, seen_by=seen_by),
    ]
    if solarise > 0:
        steps.append(Solarise(probability=solarise, unit=unit, seen_by=seen_by))
    return tuple(steps)


def dino_global_1(form: Form = "affine") -> Pipeline:
    """DINO's first global view (Caron et al. 2021): always blurred. Also Mugs' weak view A."""
    return _dino(blur=1.0, solarise=0.0, form=form)


def dino_global_2(form: Form = "affine") -> Pipeline:
    """DINO's second global view: blurred with probability 0.1, solarised with 0.2. Also Mugs' weak view B."""
    return _dino(blur=0.1, solarise=0.2, form=form)


def dino_local(form: Form = "affine") -> Pipeline:
    """DINO's local views: blurred with probability 0.5."""
    return _dino(blur=0.5, solarise=0.0, form=form)


def patch_code(
    count: int = 4, probability: float = 1.0, seen_by: SeenBy = "both", form: Form = "affine"
) -> Pipeline:
    """The per-patch operations of PW-Self's public code (arXiv 2310.18651): `count` of 4, in an order drawn per patch.

    The code's runs on ImageNet-100 used all four, its first version two. They come after the image-level operations;
    write `dino_local() + patch_code()`. `probability` is that of a patch being changed at all (1 in the code);
    `seen_by="student"` keeps the teacher's views clean (the code corrupts both).
    """
    pool = (
        ColorJitter(brightness=0.1, contrast=0.0, saturation=0.0, hue=0.1, form=form),
        GaussianBlur(sigma=(0.1, 2.0), kernel=(5, 1)),
        Sharpness(factor=2.0, probability=0.5),
        Posterise(bits=3, probability=0.5),
    )
    return (SomeOf(pool=pool, count=count, probability=probability, unit="patch", seen_by=seen_by),)


def patch_literal(probability: float = 1.0, seen_by: SeenBy = "both") -> Pipeline:
    """The abstract of PW-Self read literally: DINO's photometric operations drawn for every patch on its own.

    The image itself only gets crop and flip, so this replaces the image-level pipeline. The blur takes the local
    views' probability of 0.5 and solarising the second global view's 0.2, since one patch belongs to no view in
    particular. `probability` multiplies every operation's own.
    """
    return tuple(
        step.model_copy(update={"probability": step.probability * probability})
        for step in _dino(blur=0.5, solarise=0.2, unit="patch", seen_by=seen_by)
    )


def mugs_strong(noise: Noise = "valid") -> Pipeline:
    """Mugs' strong view (Zhou et al. 2022): RandAugment and random erasing, no colour jitter, blur or grayscale.

    Departure: RandAugment runs on the crop instead of the full-size image before cropping. `noise` is that of
    `RandomErasing`.
    """
    return (RandAugment(), RandomErasing(noise=noise))
