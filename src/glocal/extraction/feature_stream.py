"""From images to frozen features: how an image becomes a model's input, a stream of features, and cached embeddings.

Matrix products round differently for differently shaped batches. To give the same bits whatever the batch size and the
number of workers or processes, images are grouped by their place in the list into tiles whose size depends only on the
input's shape, and each tile is one forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from glocal.data.source import ImageSource
from glocal.errors import ConfigError, ModelError, UnreadableImageError
from glocal.models.encoder import Encoder
from glocal.models.features import Features
from glocal.models.preprocessing import FeatureTransform


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
    device = encoder.device
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
            span = slice(start, start + batch_size)
            rest = seen - len(where) if start + batch_size >= len(where) else 0
            features = tile if len(where) <= batch_size else [_rows(f, span) for f in tile]
            yield FeatureBatch(where[span], features, len(where[span]) + rest)


def check_finite(encoder: Encoder, values: Tensor, what: str) -> None:
    """Refuse features that aren't numbers; rankings, means and IoUs of them would look like figures.

    Raises:
        ModelError: naming the model and what it gave.
    """
    # A sum that is finite has only finite terms, at a tenth of the cost of looking at each; one that isn't may overflow.
    if not values.numel() or bool(torch.isfinite(values.sum())):
        return
    bad = int((~torch.isfinite(values).flatten(1).all(1)).sum())
    if bad:
        raise ModelError(
            f"{encoder.name}: {what} aren't finite for {bad} of {len(values)} images or rows of a batch. The weights "
            "have diverged or are damaged, or overflow in this precision; take an earlier checkpoint."
        )


def precision_error(encoder: Encoder, source: ImageSource, images: int = 16) -> dict[str, float]:
    """How far features are from float32's, as a share of their length: mean over a source's first images, for the class
    embedding and for patches. Empty for a model that computes in float32.
    """
    if encoder.precision == "float32":
        return {}
    exact = replace(encoder, precision="float32")
    transform = FeatureTransform(resize="squash").resolve(encoder)
    errors: dict[str, list[Tensor]] = {"cls": [], "patches": []}
    for batch in iterate_pixels(
        source, transform, encoder.patch_size, indices=range(min(images, len(source)))
    ):
        if len(batch.indices):
            inputs = encoder.normalise(batch.pixels.to(encoder.device))
            pair = exact.features(inputs), encoder.features(inputs)
            for name, values in errors.items():
                true, given = (getattr(features, name).double() for features in pair)
                values.append(((given - true).norm(dim=-1) / true.norm(dim=-1).clamp(min=1e-12)).flatten())
    return {name: float(torch.cat(values).mean()) for name, values in errors.items() if sum(map(len, values))}


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


def _rows(features: Features, span: slice) -> Features:
    return Features(
        features.cls[span], features.patches[span], features.grid, features.tokens_before_norm[span]
    )
