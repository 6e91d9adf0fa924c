"""What anything learnt must beat: raw pixels, the same network with random weights, and k-means on small patches.

Each is an `Encoder`, so that every protocol measures it as it measures a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from glocal.data.source import ImageSource
from glocal.errors import DataError, UnreadableImageError
from glocal.models.encoder import Encoder
from glocal.models.features import Features
from glocal.models.vit import VisionTransformer

LARGEST_SIDE = 32
"""Pixels of the side at which pixels and k-means see an image; more would be too many values for a classifier."""
WINDOW = 6
"""Side of the patches of `kmeans_patches`, one at every pixel; Coates et al.'s best on CIFAR-10."""
SAMPLED = 200_000
"""Patches that k-means is fitted on."""


class Baseline(NamedTuple):
    """An encoder to compare with, and the settings that a protocol (by name) needs for it."""

    encoder: Encoder
    settings: dict[str, tuple[str, ...]]

    def overrides_of(self, protocol: str) -> list[str]:
        """Settings for one protocol, or for `all`, with the protocol's name before each."""
        if protocol != "all":
            return list(self.settings.get(protocol, ()))
        return [f"{name}.{setting}" for name, settings in self.settings.items() for setting in settings]


def baselines(encoder: Encoder, train: ImageSource, seed: int = 0) -> Iterator[Baseline]:
    """Raw pixels by Euclidean distance and by correlation, random weights, and k-means patches, for this model's input.

    Random weights are left out for a backbone that isn't a glocal ViT: its start isn't known.

    >>> [b.encoder.name for b in baselines(glocal.load("runs/a"), open_source("cifar10"))]  # doctest: +SKIP
    ['baseline: pixels', 'baseline: pixels, centred', 'baseline: random weights', 'baseline: k-means patches']
    """
    yield Baseline(pixels(encoder, centred=False), {"knn": ("distance=L2",)})
    yield Baseline(pixels(encoder, centred=True), {})
    if isinstance(encoder.backbone, VisionTransformer):
        yield Baseline(random_weights(encoder, seed), {})
    yield Baseline(kmeans_patches(encoder, train, seed=seed), {})


def pixels(like: Encoder, centred: bool) -> Encoder:
    """Pixels as embeddings, in [0, 1]; `centred`: minus their mean over the image, so that a cosine is a correlation."""
    side = _side(like)
    name = "baseline: pixels, centred" if centred else "baseline: pixels"
    backbone = PixelBackbone(like.patch_size, centred).to(like.device)
    return _encoder(name, backbone, 3 * like.patch_size**2, like, side)


def random_weights(like: Encoder, seed: int = 0) -> Encoder:
    """The same Vision Transformer as it starts, from a seed."""
    assert isinstance(like.backbone, VisionTransformer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = VisionTransformer(like.backbone.config).to(like.device).eval()
    return replace(like, name="baseline: random weights", backbone=backbone, report=None)


def kmeans_patches(like: Encoder, train: ImageSource, centroids: int = 400, seed: int = 0) -> Encoder:
    """Features of Coates, Ng and Lee (2011), "An analysis of single-layer networks": whitened 6x6 patches at every pixel,
    each coded by how much nearer than average each centroid is ("triangle"), averaged over the image's quadrants.

    Departures: mini-batch k-means; 400 centroids of 1,600 or 4,000 (published with 1,600 and a linear SVM on CIFAR-10:
    77.9 %); means instead of sums over quadrants, which share a row where their number is odd.

    Raises:
        DataError: when the images hold fewer patches than centroids.
    """
    from sklearn.cluster import MiniBatchKMeans

    patches = _sampled_patches(train, _side(like), seed)
    if len(patches) < centroids:
        raise DataError(f"{train.name} gives {len(patches)} patches, too few for {centroids} centroids.")
    backbone = KMeansBackbone(like.patch_size, centroids)
    backbone.fit_whitening(patches)
    points = backbone.whitened(patches).numpy()
    fitted = MiniBatchKMeans(centroids, batch_size=8192, n_init=1, max_iter=20, random_state=seed).fit(points)
    backbone.centroids.copy_(torch.from_numpy(fitted.cluster_centers_))
    return _encoder("baseline: k-means patches", backbone.to(like.device), centroids, like, _side(like))


class _Shallow(nn.Module):
    """A backbone of one block, as far as callers are concerned."""

    depth = 1

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def intermediate(
        self, pixels: Float[Tensor, "batch 3 height width"], layers: tuple[int, ...]
    ) -> list[Features]:
        """The features once for every layer: there is only one."""
        return [self(pixels)] * len(layers)

    def grid(self, pixels: Float[Tensor, "batch 3 height width"]) -> tuple[int, int]:
        """Rows and columns of patches."""
        return pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size


class PixelBackbone(_Shallow):
    """Class embedding: all pixels. Patches: their pixels minus the image's mean colour."""

    def __init__(self, patch_size: int, centred: bool) -> None:
        super().__init__(patch_size)
        self.centred = centred

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Features:
        """Features of pixels in [0, 1]."""
        flat = pixels.flatten(1)
        around = pixels - pixels.mean((2, 3), keepdim=True)
        patches = F.unfold(around, self.patch_size, stride=self.patch_size).transpose(1, 2)
        cls = flat - flat.mean(1, keepdim=True) if self.centred else flat
        return Features(cls, patches, self.grid(pixels), patches)


class KMeansBackbone(_Shallow):
    """Class embedding: codes averaged over quadrants. Patches: codes averaged over each patch's cell of the image."""

    mean: Tensor
    whitening: Tensor
    centroids: Tensor

    def __init__(self, patch_size: int, centroids: int) -> None:
        super().__init__(patch_size)
        values = 3 * WINDOW**2
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("whitening", torch.eye(values))
        self.register_buffer("centroids", torch.zeros(centroids, values))

    def fit_whitening(self, patches: Float[Tensor, "patches values"]) -> None:
        """ZCA-whitening of contrast-normalised patches; 0.1 is added to the eigenvalues, as in the paper."""
        normalised = _contrast_normalised(patches).double()
        self.mean.copy_(normalised.mean(0))
        values, vectors = torch.linalg.eigh((normalised - normalised.mean(0)).T.cov())
        self.whitening.copy_(vectors @ torch.diag((values + 0.1).rsqrt()) @ vectors.T)

    def whitened(self, patches: Float[Tensor, "patches values"]) -> Float[Tensor, "patches values"]:
        """Contrast-normalised, whitened patches."""
        return (_contrast_normalised(patches) - self.mean) @ self.whitening

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Features:
        """Features of pixels in [0, 1]; one image at a time: codes take (side - 5)^2 x centroids floats."""
        cls, patches, grid = [], [], self.grid(pixels)
        for image in pixels:
            rows, columns = image.shape[1] - WINDOW + 1, image.shape[2] - WINDOW + 1
            codes = self._codes(F.unfold(image[None], WINDOW)[0].T).T.reshape(-1, rows, columns)
            cls.append(F.adaptive_avg_pool2d(codes, 2).flatten())
            patches.append(F.adaptive_avg_pool2d(codes, grid).flatten(1).T)
        both = torch.stack(patches)
        return Features(torch.stack(cls), both, grid, both)

    def _codes(self, patches: Float[Tensor, "patches values"]) -> Float[Tensor, "patches centroids"]:
        distance = torch.cdist(self.whitened(patches), self.centroids)
        return (distance.mean(1, keepdim=True) - distance).clamp(min=0)


def _contrast_normalised(patches: Float[Tensor, "patches values"]) -> Float[Tensor, "patches values"]:
    """Minus the mean, by the deviation; 10 is added to the variance on a scale of 0 to 255, as in the paper."""
    around = patches - patches.mean(1, keepdim=True)
    return around / (around.square().mean(1, keepdim=True) + 10 / 255**2).sqrt()


def _sampled_patches(source: ImageSource, side: int, seed: int) -> Float[Tensor, "patches values"]:
    """Patches of images spread over a source, as many of each, at random places."""
    rng = np.random.default_rng(seed)
    images = np.unique(np.linspace(0, len(source) - 1, min(len(source), 10_000)).round().astype(np.int64))
    each = max(1, SAMPLED // len(images))
    patches: list[Tensor] = []
    for index in images.tolist():
        try:
            image = source.read(index).resize((side, side))
        except UnreadableImageError:
            continue
        unit = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        every = F.unfold(unit, WINDOW)[0].T
        patches.append(every[torch.from_numpy(rng.choice(len(every), min(each, len(every)), replace=False))])
    if not patches:
        raise DataError(f"{source.name}: none of its images could be read.")
    return torch.cat(patches)


def _side(like: Encoder) -> int:
    """At most 32 pixels, in whole patches of the model (a single one where its patch is larger)."""
    return max(like.patch_size, min(like.image_size, LARGEST_SIDE) // like.patch_size * like.patch_size)


def _encoder(name: str, backbone: nn.Module, width: int, like: Encoder, side: int) -> Encoder:
    return Encoder(
        name,
        backbone.eval(),
        width,
        like.patch_size,
        side,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        precision=like.precision,
    )
