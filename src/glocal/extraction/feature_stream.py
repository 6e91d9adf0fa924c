"""From images to frozen features: how an image becomes a model's input, a stream of features, and cached embeddings.

Matrix products round differently for differently shaped batches. To give the same bits whatever the batch size and the
number of workers or processes, images are grouped by their place in the list into tiles whose size depends only on the
input's shape, and each tile is one forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from glocal.config import Config
from glocal.data.source import ImageSource
from glocal.errors import ConfigError, ModelError, UnreadableImageError
from glocal.models.encoder import Encoder
from glocal.models.features import Features

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
        on_cpu = device_of(encoder).type == "cpu"
        tokens = TILE_VALUES // encoder.embed_dim if on_cpu else TILE_TOKENS
        fitting = max(1, tokens // (self.size // encoder.patch_size) ** 2)
        return int(min(LARGEST_TILE, 2 ** (fitting.bit_length() - 1)))


class Skipped:
    """Images that could not be read: counted, and named in a result's notes."""

    def __init__(self) -> None:
        self.images: dict[tuple[str, int], str] = {}

    def add(self, source: ImageSource, index: int, reason: str) -> None:
        """Record one image; a second time changes nothing."""
        key = source.key(int(index))
        self.images[(source.name, int(index))] = reason if reason.startswith(key) else f"{key}: {reason}"

    def notes(self, named: int = 20) -> list[str]:
        """One line per source with the count, then the first few by name."""
        lines: list[str] = []
        for name in sorted({source for source, _ in self.images}):
            reasons = [text for (source, _), text in sorted(self.images.items()) if source == name]
            lines.append(f"{name}: skipped {len(reasons)} unreadable image{'s' * (len(reasons) != 1)}")
            lines += [f"  {reason}" for reason in reasons[:named]]
            if len(reasons) > named:
                lines.append(f"  and {len(reasons) - named} more")
        return lines

    def __len__(self) -> int:
        return len(self.images)


class PixelBatch(NamedTuple):
    """Readable images of one tile. `seen` also counts the unreadable ones, so that progress adds up."""

    indices: Int64[np.ndarray, " images"]
    pixels: UInt8[Tensor, "images 3 height width"]
    seen: int


class FeatureBatch(NamedTuple):
    """Features of some images, one entry of `features` per asked layer, on the model's device."""

    indices: Int64[np.ndarray, " images"]
    features: list[Features]
    seen: int


def iterate_pixels(
    source: ImageSource,
    transform: FeatureTransform,
    patch_size: int,
    *,
    workers: int = 0,
    indices: Sequence[int] | NDArray[np.int64] | None = None,
    skipped: Skipped | None = None,
    batch_size: int = 64,
    pin_memory: bool = False,
) -> Iterator[PixelBatch]:
    """Decode and place images in order; unreadable ones go to `skipped` and a batch may be empty.

    Images are bytes: the model's own `normalise` is still to come. `transform` must be resolved. JPEGs more than twice
    too large are decoded at a smaller scale.
    """
    chosen = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    loader = DataLoader(
        _Decoded(source, transform, patch_size, chosen),
        batch_size=batch_size,
        num_workers=min(workers, max(1, len(chosen))) if workers else 0,
        collate_fn=_stack,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # its own: the loader's seed must not be drawn from training's random numbers
    )
    for good, pixels, bad in loader:
        if skipped is not None:
            for index, reason in bad:
                skipped.add(source, index, reason)
        yield PixelBatch(np.array(good, np.int64), pixels, len(good) + len(bad))


def iterate_features(
    encoder: Encoder,
    source: ImageSource,
    transform: FeatureTransform,
    batch_size: int = 64,
    workers: int = 0,
    indices: Sequence[int] | NDArray[np.int64] | None = None,
    layers: Sequence[int] = (-1,),
    skipped: Skipped | None = None,
) -> Iterator[FeatureBatch]:
    """Stream features in the order of `indices`, without the unreadable images, which go to `skipped`.

    Args:
        encoder: the frozen model.
        source: the images.
        transform: resolved or not.
        batch_size: most images in one yielded batch. Tiles are cut to it after the forward pass, so it changes no bit.
        workers: processes that decode; 0 decodes in this one. Changes no bit.
        indices: which images, in which order; null: all.
        layers: blocks counted from the end, -1 the last; after the final norm.
        skipped: collects unreadable images; null drops them silently, so pass one wherever numbers are reported.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}; allowed: 1 or more.")
    transform = transform.resolve(encoder)
    device = device_of(encoder)
    stream = iterate_pixels(
        source,
        transform,
        encoder.patch_size,
        workers=workers,
        indices=indices,
        skipped=skipped,
        batch_size=transform.tile(encoder),
        pin_memory=device.type == "cuda",
    )
    for where, pixels, seen in stream:
        if len(where) == 0:
            yield FeatureBatch(where, [], seen)
            continue
        inputs = encoder.normalise(pixels.to(device, non_blocking=True))
        last_only = tuple(layers) == (-1,)
        tile = [encoder.features(inputs)] if last_only else encoder.intermediate(inputs, layers)
        for layer, given in zip(layers, tile, strict=True):
            check_finite(encoder, given.cls, f"class embeddings of layer {layer}")
            check_finite(encoder, given.patches, f"patches of layer {layer}")
        for start in range(0, len(where), batch_size):
            part = slice(start, start + batch_size)
            rest = seen - len(where) if start + batch_size >= len(where) else 0
            features = tile if len(where) <= batch_size else [_rows(f, part) for f in tile]
            yield FeatureBatch(where[part], features, len(where[part]) + rest)


def check_finite(encoder: Encoder, values: Tensor, what: str) -> None:
    """Refuse features that aren't numbers; rankings, means and IoUs of them would look like figures.

    Raises:
        ModelError: naming the model and what it gave.
    """
    bad = int((~torch.isfinite(values).flatten(1).all(1)).sum()) if values.numel() else 0
    if bad:
        raise ModelError(
            f"{encoder.name}: {what} aren't finite for {bad} of {len(values)} images or rows of a batch. The weights "
            "have diverged or are damaged, or overflow in this precision; take an earlier checkpoint."
        )


def computed_by(encoder: Encoder) -> list[str]:
    """Everything about a model that decides the bits of its features: part of every key of what is kept."""
    return [encoder.fingerprint(), encoder.precision, encoder.device.type]


def check_patches(
    encoder: Encoder, patches: Float[Tensor, "images patches dim"], grid: tuple[int, int]
) -> None:
    """Refuse a model that gives no patch tokens, or not one a grid cell.

    Raises:
        ModelError: naming the model.
    """
    rows, columns = grid
    count = patches.shape[-2]
    if count == 0 or count != rows * columns:
        raise ModelError(
            f"{encoder.name} gives {count} patch tokens on a grid of {rows}x{columns}; dense protocols need one each. "
            "Use a Vision Transformer with patch tokens, or an image-level protocol (knn, linear)."
        )


def device_of(encoder: Encoder) -> torch.device:
    """The device a model's parameters are on; the CPU for a model without any."""
    return encoder.device


class _Decoded(Dataset[tuple[int, Tensor | None, str]]):
    """Images by place in `indices`; an unreadable one gives its reason instead of raising inside a worker."""

    def __init__(
        self, source: ImageSource, transform: FeatureTransform, patch_size: int, indices: NDArray[np.int64]
    ) -> None:
        self.source, self.transform, self.patch_size, self.indices = source, transform, patch_size, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[int, Tensor | None, str]:
        index = int(self.indices[place])
        exact = self.transform.resize == "native" or self.transform.size is None
        at_least = (
            None if exact else 2 * round((self.transform.size or 0) / (self.transform.crop_fraction or 1))
        )
        try:
            return (
                index,
                self.transform.image(self.source.read(index, at_least=at_least), self.patch_size),
                "",
            )
        except UnreadableImageError as error:
            return index, None, str(error)


_Stacked = tuple[list[int], Tensor, list[tuple[int, str]]]


def _stack(items: list[tuple[int, Tensor | None, str]]) -> _Stacked:
    good = [(index, pixels) for index, pixels, _ in items if pixels is not None]
    bad = [(index, reason) for index, pixels, reason in items if pixels is None]
    pixels = torch.stack([p for _, p in good]) if good else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    return [index for index, _ in good], pixels, bad


def _rows(features: Features, part: slice) -> Features:
    return Features(
        features.cls[part], features.patches[part], features.grid, features.tokens_before_norm[part]
    )


def _nearest(old: int, new: int) -> NDArray[np.int64]:
    """Source index of each target pixel, centres aligned (what PIL's nearest does)."""
    return np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
