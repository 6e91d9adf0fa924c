"""Embeddings of a collection as a stream of batches: vectors of the image, of its patches, or both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from glocal.data.source import ImageSource
from glocal.errors import ConfigError
from glocal.extraction.feature_stream import Skipped, check_patches, iterate_features
from glocal.extraction.image_embeddings import READOUTS, parse_readout
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.models.features import Features
from glocal.models.preprocessing import LARGEST_TILE, FeatureTransform

PATCHES = "patches"
"""The readout that gives every patch its own vector."""


@dataclass
class EmbeddingBatch:
    """Embeddings of some images in float32, those of unreadable ones left out."""

    indices: Int64[np.ndarray, " images"]
    """Their places in the source."""
    vectors: dict[str, Float[np.ndarray, "images *patches dim"]]
    """By readout as asked for: (images, dim), or (images, patches, dim), patches row by row."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    """Place and reason."""


def parse_readouts(what: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Readouts by the names they were asked for; `patches` stands beside those of the image.

    Raises:
        ConfigError: for an unknown one, none at all, or one named twice.

    >>> parse_readouts(["cls", "patches@-2"])
    {'cls': ('cls', -1), 'patches@-2': ('patches', -2)}
    """
    if not what or len(set(what)) < len(what):
        raise ConfigError(
            f"what={','.join(what)}: name each kind of embedding once, for example what=cls,patches."
        )
    return {name: parse_readout(name, (*READOUTS, PATCHES)) for name in what}


def iterate_embeddings(
    encoder: Encoder,
    source: ImageSource,
    what: Sequence[str] = ("cls",),
    transform: FeatureTransform | None = None,
    work: Work | None = None,
    indices: Sequence[int] | NDArray[np.int64] | None = None,
) -> Iterator[EmbeddingBatch]:
    """Embed images one forward pass at a time; nothing is kept, memory stays flat.

    Args:
        encoder: the frozen model, on its device, in its precision.
        source: the images.
        what: `cls`, `mean_patches`, `gem_patches`, `patches`, each with `@-2` for the block before the last, and so on.
        transform: how images become input; null: the model's size, shorter side resized and central crop.
        work: workers that decode.
        indices: which images, in which order; null: all.

    Raises:
        ConfigError: for an unknown readout.
        ModelError: for patches of a model that has none, and features that are no numbers.

    >>> from glocal.models.loading import load
    >>> for batch in iterate_embeddings(load("runs/a"), open_source("photos")): ...  # doctest: +SKIP
    """
    asked = parse_readouts(what)
    layers = tuple(sorted({layer for _, layer in asked.values()}))
    workers = 0 if work is None else work.workers
    transform = transform or FeatureTransform()
    known: set[tuple[str, int]] = set()
    skipped = Skipped()
    for batch in iterate_features(
        encoder, source, transform, LARGEST_TILE, workers, indices, layers, skipped
    ):
        unreadable = [(key[1], text) for key, text in skipped.images.items() if key not in known]
        known |= skipped.images.keys()
        by_layer = dict(zip(layers, batch.features, strict=False))
        vectors = (
            {name: _read(encoder, readout, by_layer[layer]) for name, (readout, layer) in asked.items()}
            if by_layer
            else {}
        )
        grid = batch.features[0].grid if batch.features else (0, 0)
        yield EmbeddingBatch(batch.indices, vectors, grid, unreadable)


def _read(encoder: Encoder, readout: str, features: Features) -> NDArray[np.float32]:
    """One readout of a batch, off the device."""
    if readout != "cls":
        check_patches(encoder, features.patches, features.grid)
    vectors = features.patches if readout == PATCHES else READOUTS[readout](features)
    values: NDArray[np.float32] = vectors.float().cpu().numpy()
    return values
