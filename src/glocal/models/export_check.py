"""Whether an exported model is the model: its embeddings on random and on real images, at several sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from glocal.errors import ModelError
from glocal.models.encoder import Encoder

# Of the largest embedding's size: float32 sums in another order.
TOLERANCE = 1e-4
Embeddings = tuple[Tensor, Tensor]
"""Class embeddings (batch, dim) and patch embeddings (batch, patches, dim)."""


class Difference(NamedTuple):
    """The largest difference of any number, as a share of the largest embedding, at one size (height, width)."""

    size: tuple[int, int]
    images: str
    value: float


def compare(
    encoder: Encoder,
    run: Callable[[Float[Tensor, "batch 3 height width"]], Embeddings],
    sizes: Sequence[tuple[int, int]],
) -> list[Difference]:
    """Both models on noise and on two photographs that scikit-learn brings, two images at a time."""
    differences = []
    for size in sizes:
        noise = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        for images, pixels in (("random", noise), ("photographs", encoder.normalise(photographs(size)))):
            features = encoder.features(pixels)
            ours, theirs = (features.cls, features.patches), run(pixels)
            value = max(
                float((a - b).abs().max() / a.abs().max().clamp_min(1e-6))
                for a, b in zip(ours, theirs, strict=True)
            )
            differences.append(Difference(size, images, value))
    return differences


def refuse_differences(differences: Sequence[Difference], what: str) -> None:
    """Say which images the exported model sees differently.

    Raises:
        ModelError: when a difference is above `TOLERANCE` or no number.
    """
    wrong = [d for d in differences if not d.value <= TOLERANCE]
    if wrong:
        worst = wrong[0]
        raise ModelError(
            f"{what} differs from the model by {worst.value:.1e} of its embeddings on {worst.images} images of "
            f"{worst.size[0]}x{worst.size[1]} pixels; at most {TOLERANCE:.0e} is allowed. Do not use it; export to another "
            "form, and report this."
        )


def three_sizes(encoder: Encoder) -> list[tuple[int, int]]:
    """The model's own side, one that is smaller, and one that is no square."""
    side, patch = encoder.image_size, encoder.patch_size
    cells = max(2, side // patch)
    return [
        (side, side),
        (max(2, cells // 2) * patch,) * 2,
        (cells * patch, (cells + max(1, cells // 2)) * patch),
    ]


def photographs(size: tuple[int, int]) -> Float[Tensor, "2 3 height width"]:
    """The two photographs inside scikit-learn's package, in [0, 1]."""
    from sklearn.datasets import load_sample_images

    images = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2).float() / 255.0
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
