"""How an image becomes a model's input: resized, cut, as bytes; its mask with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from glocal.config import Config
from glocal.errors import ConfigError

if TYPE_CHECKING:
    from glocal.models.encoder import Encoder

TILE_TOKENS = 64 * 196
"""Patches in one forward pass on a GPU: 64 images of 224 px at patch 16. Bounds memory at any resolution."""
TILE_VALUES = 8 * 196 * 384
"""Patches times width in one forward pass on a CPU: 8 images of 224 px by ViT-S/16. Its largest activation then has
10 MB. Above 32 MB the C library returns memory after each layer, and faulting it in again costs a fifth of the time."""
LARGEST_TILE = 256
"""Images in one forward pass of small images. A power of two, as every tile is."""


class Placement(NamedTuple):
    """Where an image goes: resized to `size`, then cut to `crop`. (height, width) and (top, left, height, width)."""

    size: tuple[int, int]
    crop: tuple[int, int, int, int]


class FeatureTransform(Config):
    """How an image becomes model input. Changes every number measured through it."""

    resize: Literal["crop", "squash", "shorter", "native"] = "crop"
    """crop: shorter side to `size / crop_fraction`, central square of `size`, as torchvision does on PIL images, pixel for
    pixel (but JPEGs of more than four times the size are decoded at a smaller scale first); squash: to a square, aspect lost;
    shorter: shorter side to `size`, the other follows; native: as it is. The last two floor sides to whole patches."""
    size: int | None = None
    """Side in pixels, a multiple of the patch; null: the model's own. Not used by `native`."""
    crop_fraction: float | None = None
    """Share of the shorter side that `crop` keeps; null: 224/256 from 96 px up, else 1 (small images lose nothing)."""

    def resolve(self, encoder: Encoder) -> FeatureTransform:
        """Fill in what the model decides.

        Raises:
            ConfigError: when `size` is no multiple of the model's patch.
        """
        patch = encoder.patch_size
        size = self.size if self.size is not None else encoder.image_size // patch * patch
        if size < patch or size % patch:
            nearest = max(patch, round(size / patch) * patch)
            raise ConfigError(
                f"size={size} is no multiple of the model's patch of {patch} px. Use size={nearest}."
            )
        fraction = (
            self.crop_fraction if self.crop_fraction is not None else (224 / 256 if size >= 96 else 1.0)
        )
        if not 0 < fraction <= 1:
            raise ConfigError(f"crop_fraction={fraction} is out of range; allowed: above 0, at most 1.")
        return FeatureTransform(resize=self.resize, size=size, crop_fraction=fraction)

    def placement(self, height: int, width: int, patch_size: int) -> Placement:
        """Say where an image of this size goes. Call on a resolved transform."""
        if self.size is None or self.crop_fraction is None:
            raise ConfigError("This transform is not resolved yet. Call transform.resolve(encoder) first.")
        if self.resize == "squash":
            return Placement((self.size, self.size), (0, 0, self.size, self.size))
        if self.resize == "crop":
            # torchvision's Resize and CenterCrop to the pixel: the longer side is cut off, odd margins round to even.
            shorter, least = round(self.size / self.crop_fraction), min(height, width)
            resized = (shorter * height // least, shorter * width // least)
            top, left = (round((side - self.size) / 2) for side in resized)
            return Placement(resized, (top, left, self.size, self.size))
        scale = self.size / min(height, width) if self.resize == "shorter" else 1.0
        floored = [
            max(patch_size, round(side * scale) // patch_size * patch_size) for side in (height, width)
        ]
        return Placement((floored[0], floored[1]), (0, 0, floored[0], floored[1]))

    def image(self, image: Image.Image, patch_size: int) -> UInt8[Tensor, "3 height width"]:
        """Resize (antialiased bicubic on bytes, as torchvision does on PIL images) and crop."""
        place = self.placement(image.height, image.width, patch_size)
        top, left, height, width = place.crop
        if place.size != (image.height, image.width):
            image = image.resize((place.size[1], place.size[0]), Image.Resampling.BICUBIC)
        if place.size != (height, width):
            image = image.crop((left, top, left + width, top + height))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def mask(self, mask: NDArray[Any], patch_size: int) -> Shaped[np.ndarray, "height width"]:
        """Bring a mask to the pixels of `image` by nearest neighbour (centres aligned); values are never mixed."""
        place = self.placement(mask.shape[0], mask.shape[1], patch_size)
        top, left, height, width = place.crop
        rows = _nearest(mask.shape[0], place.size[0])[top : top + height]
        columns = _nearest(mask.shape[1], place.size[1])[left : left + width]
        return np.ascontiguousarray(mask[rows][:, columns])

    def tile(self, encoder: Encoder) -> int:
        """Images in one forward pass; 1 where sizes differ from image to image. Smaller on CPUs than on GPUs."""
        if self.resize in ("native", "shorter") or self.size is None:
            return 1
        on_cpu = encoder.device.type == "cpu"
        tokens = TILE_VALUES // encoder.embed_dim if on_cpu else TILE_TOKENS
        fitting = max(1, tokens // (self.size // encoder.patch_size) ** 2)
        return int(min(LARGEST_TILE, 2 ** (fitting.bit_length() - 1)))


def _nearest(old: int, new: int) -> NDArray[np.int64]:
    """Source index of each target pixel, centres aligned (what PIL's nearest does)."""
    return np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
