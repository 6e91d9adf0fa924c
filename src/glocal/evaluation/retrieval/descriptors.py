"""One vector of length 1 an image, for search: which tokens, at which scales, whitened or not."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from glocal.config import Config
from glocal.data.changed import ChangedSource
from glocal.data.source import ImageSource
from glocal.errors import ConfigError, DataError
from glocal.extraction.image_embeddings import Embeddings, extract_embeddings
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.models.preprocessing import FeatureTransform

_READOUTS: dict[str, tuple[str, ...]] = {"cls": ("cls",), "cls_gem": ("cls", "gem_patches")}
# Eigenvalues below this share of the largest are raised to it: directions without variance aren't blown up.
_EIGENVALUE_FLOOR = 1e-5


class DescriptorConfig(Config):
    """What a descriptor is made of. Everything here changes results."""

    readout: Literal["cls", "cls_gem"] = "cls"
    """cls: the class token; cls_gem: class token and generalised mean (power 4) of the patches, concatenated."""
    resize: Literal["squash", "crop", "shorter", "longer"] = "squash"
    """squash to a square, central crop, or keep the aspect with the shorter or the longer side at `size`."""
    size: int | None = None
    """Pixels of that side; null: the model's own."""
    scales: tuple[float, ...] = (1.0,)
    """Factors on `size`; the descriptors of all scales are averaged before normalising. The usual set of three is
    1, 0.7071, 0.5."""

    def sizes(self, encoder: Encoder) -> list[int]:
        """The side in pixels at each scale, rounded to whole patches.

        Raises:
            ConfigError: for no scale, or one that isn't above 0.
        """
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise ConfigError(
                f"scales={list(self.scales)}; give one or more factors above 0, such as 1, 0.7071, 0.5."
            )
        patch = encoder.patch_size
        base = self.size if self.size is not None else encoder.image_size
        return [max(patch, round(base * scale / patch) * patch) for scale in self.scales]


class LongerSide(ChangedSource):
    """Images of a source made smaller or larger so that the longer side has `size` pixels, aspect kept."""

    change = "longer side"

    def __init__(self, inner: ImageSource, size: int) -> None:
        super().__init__(inner, size)
        self._size = size

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Read and resize (antialiased bicubic)."""
        image = self.inner.read(index)
        scale = self._size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC)


def describe(
    encoder: Encoder, source: ImageSource, config: DescriptorConfig, work: Work, unit: bool = True
) -> Embeddings:
    """Embed every readable image; the vectors, under the name `descriptor`, have length 1 where `unit`.

    Scales are averaged before normalising, as in DINO's scripts. Departure: each scale is resized from the image file,
    not from the first scale's pixels.

    Args:
        encoder: the frozen model.
        source: the images.
        config: what a descriptor is made of.
        work: cache, workers, progress.
        unit: bring vectors to length 1; whitening takes them as they are.

    Raises:
        ConfigError: for bad scales or sizes.
        DataError: when no image could be read, or a descriptor isn't finite.
    """
    total: Tensor | None = None
    for size in config.sizes(encoder):
        resized, transform = at_size(source, config, size)
        embeddings = extract_embeddings(encoder, resized, transform, _READOUTS[config.readout], work)
        joined = torch.cat(list(embeddings.vectors.values()), dim=1)
        total = joined if total is None else total + joined
    assert total is not None
    bad = int((~torch.isfinite(total).all(dim=1)).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(total)} descriptors of {source.name} by {encoder.name} aren't finite."
        )
    vectors = F.normalize(total, dim=1) if unit else total
    return Embeddings({"descriptor": vectors}, embeddings.indices, embeddings.labels, embeddings.skipped)


def learn_whitening(
    descriptors: Float[Tensor, "images dim"], dim: int | None = None
) -> Float[Tensor, "dim kept"]:
    """Learn PCA-whitening from separate images: project on the leading `dim` axes, divide by the roots of their second
    moments. As DINO's evaluation does it: on descriptors of any length, without taking a mean off.

    Eigenvalues below 1e-5 of the largest are raised to that.

    Raises:
        DataError: for fewer than two images.
        ConfigError: for more dimensions than the descriptor has.

    >>> learn_whitening(torch.randn(50, 4), 2).shape
    torch.Size([4, 2])
    """
    images, width = descriptors.shape
    if images < 2:
        raise DataError(f"Whitening was given {images} image(s); 2 or more are needed, thousands are usual.")
    if dim is not None and not 1 <= dim <= width:
        raise ConfigError(
            f"whitening_dim={dim}; descriptors have {width} dimensions, so 1 to {width} is allowed."
        )
    exact = descriptors.double()
    if float((exact - exact.mean(dim=0)).abs().max()) == 0:
        raise DataError(f"All {images} whitening images have the same descriptor; the model has collapsed.")
    values, vectors = torch.linalg.eigh(exact.T @ exact / images)
    values = values.clamp(min=_EIGENVALUE_FLOOR * float(values[-1])).flip(0)[:dim]
    projection: Tensor = (vectors.flip(1)[:, :dim] / values.sqrt()).float()
    return projection


def whiten(
    descriptors: Float[Tensor, "images dim"], projection: Float[Tensor, "dim kept"]
) -> Float[Tensor, "images kept"]:
    """Apply a whitening and bring the result to length 1."""
    return F.normalize(descriptors @ projection, dim=1)


def rows_of(embeddings: Embeddings, size: int) -> NDArray[np.int64]:
    """For each image of a source of `size` images the row of its descriptor, -1 where it couldn't be read."""
    rows = np.full(size, -1, np.int64)
    rows[embeddings.indices] = np.arange(len(embeddings.indices))
    return rows


def at_size(source: ImageSource, config: DescriptorConfig, size: int) -> tuple[ImageSource, FeatureTransform]:
    """The images and the transform that bring them to `size` pixels in the configured way."""
    if config.resize == "longer":
        return LongerSide(source, size), FeatureTransform(resize="native", size=size)
    return source, FeatureTransform(resize=config.resize, size=size)
