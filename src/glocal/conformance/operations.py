"""What every photometric operation must do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from glocal.conformance.suite import require
from glocal.views.photometric import OperationBase, apply_pipeline

_PATCH = 8


def keeps_shape_and_range(operation: OperationBase) -> None:
    """Views keep their shape and stay within 0 and 1; what was given is left alone."""
    pixels = _pixels()
    before = pixels.clone()
    changed = _apply(operation, pixels)
    require(changed.shape == pixels.shape, f"{tuple(pixels.shape)} became {tuple(changed.shape)}")
    require(bool(changed.isfinite().all()), "some pixels are no finite numbers")
    low, high = float(changed.min()), float(changed.max())
    require(low >= -1e-5 and high <= 1 + 1e-5, f"pixels range from {low:.4g} to {high:.4g}")
    require(torch.equal(pixels, before), "the pixels that were given are overwritten")


def follows_its_seeds(operation: OperationBase) -> None:
    """A view's random numbers come from its seed: the same alone, in a batch, and again."""
    pixels, seeds = _pixels(), torch.arange(6)
    whole = _apply(operation, pixels, seeds)
    require(torch.equal(whole, _apply(operation, pixels, seeds)), "the same seeds gave other pixels")
    alone = torch.cat([_apply(operation, pixels[i : i + 1], seeds[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-4)


def heeds_its_probability(operation: OperationBase) -> None:
    """With probability 0 nothing changes."""
    pixels = _pixels()
    never = _apply(operation.model_copy(update={"probability": 0.0}), pixels)
    torch.testing.assert_close(never, pixels, rtol=0, atol=1e-6)


def works_on_patches(operation: OperationBase) -> None:
    """With unit=patch every cell of the token grid is changed by itself."""
    pixels, seeds = _pixels(), torch.arange(6)
    of_patches = operation.model_copy(update={"unit": "patch"})
    changed = _apply(of_patches, pixels, seeds)
    other = pixels.clone()
    other[..., _PATCH:] = 1 - other[..., _PATCH:]
    first = (..., slice(0, _PATCH), slice(0, _PATCH))
    torch.testing.assert_close(changed[first], _apply(of_patches, other, seeds)[first], rtol=0, atol=1e-6)


CHECKS: Sequence[Callable[[OperationBase], None]] = (
    keeps_shape_and_range,
    follows_its_seeds,
    heeds_its_probability,
    works_on_patches,
)


def _pixels() -> Tensor:
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _apply(operation: OperationBase, pixels: Tensor, seeds: Tensor | None = None) -> Tensor:
    return apply_pipeline(pixels, [operation], torch.arange(len(pixels)) if seeds is None else seeds, _PATCH)
