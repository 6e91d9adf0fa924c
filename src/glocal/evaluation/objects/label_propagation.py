"""Following labels through a video by the similarity of patch features, without training.

Jabri et al. 2020, "Space-time correspondence as a contrastive random walk", in the form of DINO's evaluation (Caron et
al. 2021, section 4.2.2): sources are the first frame and the few before, each target patch takes its best matches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

BLOCK_ELEMENTS = 2_000_000
"""Similarities held at a time (8 MB): a block of target rows against the source rows within reach."""


class Propagation(NamedTuple):
    """The four numbers of the method; defaults are DINO's."""

    previous: int = 7
    """Frames before the target that serve as sources, besides the first."""
    radius: int = 12
    """Furthest source in rows and in columns: 12 patches give a window of 25x25."""
    best: int = 5
    """Sources kept per target over all frames; ties with the last one stay too."""
    temperature: float = 0.1
    """Weights are exp(cosine / temperature), normalised to sum to 1."""


class Source(NamedTuple):
    """A frame whose labels are known: features of unit length, soft labels."""

    features: Float[Tensor, "rows columns dim"]
    labels: Float[Tensor, "rows columns objects"]


def propagate_labels(
    target: Float[Tensor, "rows columns dim"], sources: list[Source], settings: Propagation
) -> Float[Tensor, "rows columns objects"]:
    """Give every target patch the weighted mean label of its most similar source patches nearby.

    Exact, and cheaper than the full similarity matrix: rows out of reach are never multiplied, and only the `best`
    similarities of a patch are exponentiated. Independent of how rows are blocked but for rounding.
    """
    rows, columns, _ = target.shape
    # Rows first, then frames: the source rows within reach are then one contiguous slice.
    features = torch.stack([source.features for source in sources], 1)
    labels = torch.stack([source.labels for source in sources], 1)
    reach = min(rows, 2 * settings.radius + 1)
    block = max(1, BLOCK_ELEMENTS // (columns * columns * reach * len(sources)))
    result = []
    for top in range(0, rows, block):
        bottom = min(rows, top + block)
        first, last = max(0, top - settings.radius), min(rows, bottom + settings.radius)
        similarity = target[top:bottom].flatten(0, 1) @ features[first:last].flatten(0, 2).T
        near = _within_reach(range(top, bottom), range(first, last), columns, settings.radius, target.device)
        shape = (bottom - top, columns, last - first, len(sources), columns)
        similarity.view(shape).masked_fill_(~near[:, :, :, None], -torch.inf)
        mixed = _mix_best(similarity, labels[first:last].flatten(0, 2), settings)
        result.append(mixed.view(bottom - top, columns, -1))
    return torch.cat(result)


def follow(
    frames: Iterable[Float[Tensor, "rows columns dim"]],
    first_labels: Float[Tensor, "rows columns objects"],
    settings: Propagation,
) -> Iterator[Float[Tensor, "rows columns objects"]]:
    """Yield soft labels of every frame after the first, given features of all frames in order (any length).

    Propagated labels become sources in their soft form, as in the reference.
    """
    first: Source | None = None
    recent: deque[Source] = deque(maxlen=settings.previous)
    for features in frames:
        unit = F.normalize(features, dim=-1)
        if first is None:
            first = Source(unit, first_labels)
            continue
        labels = propagate_labels(unit, [first, *recent], settings)
        recent.append(Source(unit, labels))
        yield labels


def sharpen(labels: Float[Tensor, "rows columns objects"], patch_size: int) -> Int64[Tensor, "height width"]:
    """Turn soft labels into object numbers per pixel: bilinear, each channel stretched to 0..1, highest channel.

    A channel without any positive value is left as it is; ties go to the lowest number.
    """
    channels = labels.permute(2, 0, 1)[None]
    image = F.interpolate(channels, scale_factor=patch_size, mode="bilinear", align_corners=False)[0]
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    # A flat channel becomes 0/0 in the reference; here it keeps 0 and so never wins over a stretched one.
    stretched = torch.where(
        high > 0, (image - low) / (high - low).clamp(min=torch.finfo(image.dtype).tiny), image
    )
    return stretched.argmax(0)


def _within_reach(targets: range, sources: range, columns: int, radius: int, device: torch.device) -> Tensor:
    """Boolean (target rows, target columns, source rows, source columns): no further apart than `radius`."""
    up = torch.arange(targets.start, targets.stop, device=device)[:, None]
    down = torch.arange(sources.start, sources.stop, device=device)
    across = torch.arange(columns, device=device)
    row_near = (up - down).abs() <= radius
    column_near = (across[:, None] - across).abs() <= radius
    return row_near[:, None, :, None] & column_near[None, :, None, :]


def _mix_best(
    similarity: Float[Tensor, "targets sources"],
    labels: Float[Tensor, "sources objects"],
    settings: Propagation,
) -> Float[Tensor, "targets objects"]:
    """Weighted mean label of each target's best sources; those equal to the last of them count too."""
    count = min(settings.best, similarity.shape[1])
    # One more than kept tells whether there is a tie at the border without a second pass over all similarities.
    values, places = similarity.topk(min(count + 1, similarity.shape[1]), dim=1)
    weights = (values[:, :count] / settings.temperature).exp()
    mixed = torch.einsum("tk,tko->to", weights, labels[places[:, :count]]) / weights.sum(1, keepdim=True)
    if values.shape[1] > count:
        tied = ((values[:, count] == values[:, count - 1]) & values[:, count].isfinite()).nonzero()[:, 0]
        if len(tied):
            chosen = similarity[tied]
            chosen = chosen.masked_fill(chosen < values[tied, count - 1 : count], -torch.inf)
            weights = (chosen / settings.temperature).exp()
            mixed[tied] = weights @ labels / weights.sum(1, keepdim=True)
    return mixed
