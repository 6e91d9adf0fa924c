"""From features to what can be seen: colours of patches, foreground, a map of images, clusters of patches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

# A perceptually even scale from dark violet to light yellow; the page's script has the same anchors.
HEAT = np.array(
    [(13, 8, 51), (74, 12, 107), (130, 37, 103), (187, 55, 84), (229, 92, 48), (249, 142, 9), (252, 205, 60), (252, 255, 180)],
    dtype=np.float64,
)  # fmt: skip
PALETTE = np.array(
    [(78, 121, 167), (242, 142, 43), (225, 87, 89), (118, 183, 178), (89, 161, 79), (237, 201, 72),
     (176, 122, 161), (255, 157, 167), (156, 117, 95), (90, 90, 110), (60, 180, 230), (160, 200, 60)],
    dtype=np.uint8,
)  # fmt: skip
MOST_FITTED = 20_000


class PatchClusters(NamedTuple):
    """Groups of patches, and for each the patches nearest to its centre, at most one an image, as (image, patch)."""

    labels: Int64[np.ndarray, "images patches"]
    examples: list[list[tuple[int, int]]]


def principal_directions(rows: Float[Tensor, "rows dim"], count: int = 3) -> Float[Tensor, "dim count"]:
    """The directions of largest variance, each with the sign that makes its largest entry positive: reproducible."""
    centred = rows.double() - rows.double().mean(0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    axes = axes[:, -count:].flip(1)
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    signed: Tensor = axes * largest.sign()
    return signed


def patch_colours(
    patches: Float[Tensor, "images patches dim"], where: Bool[Tensor, "images patches"] | None = None
) -> UInt8[np.ndarray, "images patches 3"]:
    """The first three principal components of all images' patches as red, green and blue: one basis for all images.

    Between the 1st and the 99th per cent of each component; with `where`, basis and range come from these patches only.
    """
    flat = F.normalize(patches.double(), dim=-1).flatten(0, 1)
    fitted = flat if where is None or int(where.sum()) < 4 else flat[where.flatten()]
    axes = principal_directions(fitted, min(3, flat.shape[1]))
    parts, basis = flat @ axes, fitted @ axes
    low, high = (torch.quantile(_some(basis), q, dim=0) for q in (0.01, 0.99))
    unit = ((parts - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    colours = torch.zeros(len(flat), 3, dtype=torch.float64)
    colours[:, : unit.shape[1]] = unit
    whole: UInt8[np.ndarray, "images patches 3"] = (
        (colours * 255).round().byte().view(*patches.shape[:2], 3).numpy()
    )
    return whole


def foreground(
    patches: Float[Tensor, "images patches dim"], grid: tuple[int, int]
) -> Bool[Tensor, "images patches"]:
    """Patches on the centre's side of the first principal component, cut by Otsu's threshold over all images.

    A guess made without any label: what lies at the border of most images is taken for background.
    """
    flat = F.normalize(patches.double(), dim=-1).flatten(0, 1)
    score = (flat @ principal_directions(flat, 1))[:, 0].view(patches.shape[0], *grid)
    border = torch.ones(grid, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    if bool((~border).any()) and float(score[:, ~border].mean()) < float(score[:, border].mean()):
        score = -score
    return (score > otsu_threshold(score.flatten())).flatten(1)


def otsu_threshold(values: Float[Tensor, " rows"], bins: int = 128) -> float:
    """The threshold between two groups of values whose means lie farthest apart, weighted by size (Otsu 1979)."""
    counts, edges = np.histogram(values.numpy(), bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), len(values) - np.cumsum(counts)
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1 + int(np.argmax(np.nan_to_num(spread[:-1], nan=-1.0)))])


def heat_colours(values: Float[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "rows columns 3"]:
    """A map from its smallest to its largest value in colours from dark to light."""
    low, high = float(values.min()), float(values.max())
    place = (values - low) / max(high - low, 1e-12) * (len(HEAT) - 1)
    channels = [np.interp(place, np.arange(len(HEAT)), HEAT[:, channel]) for channel in range(3)]
    colours: UInt8[np.ndarray, "rows columns 3"] = np.stack(channels, -1).round().astype(np.uint8)
    return colours


def plane_map(embeddings: Float[Tensor, "images dim"]) -> Float[np.ndarray, "images 2"]:
    """Images on a plane so that neighbours stay neighbours (t-SNE of cosines, started from PCA), in 0..1.

    Distances between far groups mean nothing. Fewer than 12 images: the first two principal components.
    """
    unit = F.normalize(embeddings.double(), dim=1)
    if len(unit) < 12:
        axes = principal_directions(unit, min(2, unit.shape[1]))
        points = np.zeros((len(unit), 2))
        points[:, : axes.shape[1]] = (unit @ axes).numpy()
    else:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(unit) - 1) / 4)
        points = TSNE(init="pca", perplexity=perplexity, metric="cosine", random_state=0).fit_transform(
            unit.numpy()
        )
    low, high = points.min(0), points.max(0)
    placed: Float[np.ndarray, "images 2"] = (points - low) / np.maximum(high - low, 1e-12)
    return placed


def cluster_patches(
    patches: Float[Tensor, "images patches dim"], count: int = 12, shown: int = 8
) -> PatchClusters:
    """Group the unit patches of all images by k-means; largest group first. The start is fixed, so is the answer."""
    from sklearn.cluster import MiniBatchKMeans

    images, positions, _ = patches.shape
    unit = F.normalize(patches.float(), dim=-1).flatten(0, 1)
    count = min(count, len(unit))
    means = MiniBatchKMeans(count, random_state=0, n_init=3, batch_size=2048).fit(_some(unit).numpy())
    centres = torch.from_numpy(means.cluster_centers_).to(unit.dtype)
    distance = torch.cdist(unit, centres)
    labels = distance.argmin(1)
    order = torch.bincount(labels, minlength=count).argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(count)
    examples = [_nearest_of(distance[:, c], labels == c, images, positions, shown) for c in order.tolist()]
    return PatchClusters(rank[labels].view(images, positions).numpy(), examples)


def _nearest_of(
    distance: Tensor, member: Tensor, images: int, positions: int, shown: int
) -> list[tuple[int, int]]:
    masked = distance.masked_fill(~member, torch.inf).view(images, positions)
    best, where = masked.min(1)
    order = [int(i) for i in best.argsort(stable=True)[:shown] if torch.isfinite(best[i])]
    return [(image, int(where[image])) for image in order]


def _some(rows: Tensor) -> Tensor:
    """Rows evenly over all, few enough to fit on."""
    return rows[:: max(1, len(rows) // MOST_FITTED)]
