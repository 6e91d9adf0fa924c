"""Patch features of a source, in order, kept on disk: interrupted dense work goes on, and protocols read each other's."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from glocal.data.source import ImageSource
from glocal.distributed import in_turns
from glocal.extraction.feature_files import key_of, read_features, write_features
from glocal.extraction.feature_stream import (
    FeatureBatch,
    Skipped,
    check_finite,
    check_patches,
    computed_by,
    iterate_features,
)
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.models.preprocessing import FeatureTransform

FORMAT = 4
"""Layout and arithmetic of the files; part of their key."""
LARGEST_KEPT = 16 * 2**30
"""Bytes of one model's patches on one split that are kept at most. ViT-S/16 at 224 px takes 0.3 MB an image."""


class PatchBatch(NamedTuple):
    """Patches of some images, on the model's device. `seen` also counts the unreadable ones, so that progress adds up."""

    indices: Int64[np.ndarray, " images"]
    patches: Float[Tensor, "images patches dim"]
    grid: tuple[int, int]
    seen: int


def iterate_patches(
    encoder: Encoder,
    source: ImageSource,
    transform: FeatureTransform,
    layer: int,
    work: Work,
    skipped: Skipped,
    indices: Sequence[int] | NDArray[np.int64] | None = None,
) -> Iterator[PatchBatch]:
    """Stream patches; unreadable images go to `skipped`.

    A whole source is kept under `work.cache`, a file for each forward pass, in float32: what is read back is bit for
    bit what was computed. Chosen `indices` (an epoch's order) are computed anew, and so is what exceeds 16 GiB.

    Args:
        encoder: the frozen model.
        source: the images; its state must tell its pixels, crops included.
        transform: resolved or not.
        layer: block counted from the end, -1 the last; after the final norm.
        work: cache folder, workers and batch size.
        skipped: collects unreadable images.
        indices: which images, in which order; null: all.

    Raises:
        ModelError: when the model gives no patch tokens.
    """
    transform = transform.resolve(encoder)
    if work.cache is not None and indices is None:
        # The tile, which is a file, differs between CPUs and GPUs.
        deciding = ["patches", FORMAT, *computed_by(encoder), source.state(), len(source), layer]
        folder = work.cache / key_of([*deciding, transform.tile(encoder), transform.model_dump()])
        yield from _kept(encoder, source, transform, layer, work, skipped, folder)
        return
    for batch in iterate_features(
        encoder, source, transform, work.batch_size, work.workers, indices, (layer,), skipped
    ):
        yield _patches_of(encoder, batch)


def patches_of_pixels(
    encoder: Encoder, pixels: Float[Tensor, "images 3 height width"], layer: int
) -> tuple[Float[Tensor, "images patches dim"], tuple[int, int]]:
    """Patches of normalised pixels and their grid: for work that cuts its own windows or frames.

    Raises:
        ModelError: when the model gives no patch tokens, or some that aren't finite.
    """
    features = encoder.features(pixels) if layer == -1 else encoder.intermediate(pixels, (layer,))[0]
    check_patches(encoder, features.patches, features.grid)
    check_finite(encoder, features.patches, f"patches of layer {layer}")
    return features.patches.float(), features.grid


def _kept(
    encoder: Encoder,
    source: ImageSource,
    transform: FeatureTransform,
    layer: int,
    work: Work,
    skipped: Skipped,
    folder: Path,
) -> Iterator[PatchBatch]:
    """Read the files that are there and compute the others, in one stream."""
    # One file a tile: tiles, and with them the bits, don't depend on what is there already.
    tile, count = transform.tile(encoder), len(source)
    paths = {start: folder / f"{start:09d}.safetensors" for start in range(0, count, tile)}

    def compute(starts: Sequence[int], workers: int = work.workers) -> Iterator[PatchBatch]:
        parts = [np.arange(start, min(start + tile, count)) for start in starts]
        order = np.concatenate(parts) if parts else np.arange(0)
        stream = iterate_features(encoder, source, transform, tile, workers, order, (layer,), skipped)
        for start, places, batch in zip(starts, parts, stream, strict=True):
            made = _patches_of(encoder, batch)
            if made.patches.nbytes * (count / max(1, len(made.indices))) <= LARGEST_KEPT:
                _write(paths[start], made, source, places, skipped)
            yield made

    if work.together:
        collections.deque(in_turns(lambda starts: (None for _ in compute(starts)), _absent(paths)), maxlen=0)
    missing = _absent(paths)
    stream, absent = compute(missing), set(missing)
    for start, path in paths.items():
        if start in absent:
            yield next(stream)
            continue
        features = read_features(path)
        if features is None:  # cut short by a full disk, say: compute this tile alone
            yield next(compute([start], workers=0))
            continue
        for index, reason in features.bad:
            skipped.images[(source.name, index)] = reason
        rows, columns = features.tensors["grid"].tolist()
        where, patches = features.tensors["indices"].numpy(), features.tensors["patches"].to(encoder.device)
        yield PatchBatch(where, patches, (rows, columns), min(start + tile, count) - start)


def _absent(paths: Mapping[int, Path]) -> list[int]:
    return [start for start, path in paths.items() if not path.exists()]


def _write(
    path: Path, made: PatchBatch, source: ImageSource, places: NDArray[np.int64], skipped: Skipped
) -> None:
    here = {(source.name, int(place)) for place in places}
    bad = [(key[1], text) for key, text in skipped.images.items() if key in here]
    tensors = {"patches": made.patches.cpu(), "indices": torch.from_numpy(made.indices)}
    write_features(path, {**tensors, "grid": torch.tensor(made.grid)}, bad)


def _patches_of(encoder: Encoder, batch: FeatureBatch) -> PatchBatch:
    if not batch.features:
        return PatchBatch(batch.indices, torch.empty(0, 0, 0), (0, 0), batch.seen)
    features = batch.features[0]
    check_patches(encoder, features.patches, features.grid)
    return PatchBatch(batch.indices, features.patches.float(), features.grid, batch.seen)
