"""Re-ranking of the first answers by matched patches: our own, no part of any published protocol."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from glocal.config import Config
from glocal.data.source import ImageSource
from glocal.evaluation.retrieval.descriptors import DescriptorConfig, at_size
from glocal.extraction.feature_stream import Skipped
from glocal.extraction.nearest import Neighbours
from glocal.extraction.patch_stream import iterate_patches
from glocal.extraction.progress import progress_bar
from glocal.extraction.work import Work
from glocal.matching.mutual_patches import mutual_match_score
from glocal.models.encoder import Encoder
from glocal.models.preprocessing import FeatureTransform

_QUERIES_AT_ONCE = 64  # their patches are held: 64 x 1024 x 768 floats are 200 MB


class RerankingConfig(Config):
    """How patches decide among the first answers."""

    count: Annotated[int, Field(ge=1)] = 100
    """How many answers of each query are looked at."""
    local_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Share of the patches in the new score; the rest is the cosine of the descriptors."""
    layer: Annotated[int, Field(le=-1)] = -1
    """Layer of the patches, -1 the last."""


def rerank(
    encoder: Encoder,
    queries: ImageSource,
    database: ImageSource,
    first: Neighbours,
    descriptor: DescriptorConfig,
    config: RerankingConfig,
    work: Work,
) -> Float[Tensor, "queries count"]:
    """Return new scores of the candidates; a candidate is rendered once for every 64 queries that list it.

    Patches are those of the descriptor's first scale.

    Args:
        encoder: the frozen model.
        queries: one image a row of `first`.
        database: the images that `first.rows` counts.
        first: the candidates by descriptor.
        descriptor: decides the resolution.
        config: how patches decide.
        work: workers and progress.
    """
    size = descriptor.sizes(encoder)[0]
    query_images, transform = at_size(queries, descriptor, size)
    database_images, _ = at_size(database, descriptor, size)
    index, device = first.rows.cpu().numpy(), encoder.device
    local = torch.zeros(first.similarity.shape, device=device)
    with progress_bar("re-ranking by patches", len(queries), work.progress, unit="queries") as advance:
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            block = np.arange(start, min(start + _QUERIES_AT_ONCE, len(queries)))
            patches = dict(_patches(encoder, query_images, transform, block, config.layer, work))
            asked_by: dict[int, list[tuple[int, int]]] = defaultdict(list)
            for query, column in np.ndindex(len(block), index.shape[1]):
                if int(block[query]) in patches:
                    asked_by[int(index[block[query], column])].append((int(block[query]), column))
            wanted = np.array(sorted(asked_by), np.int64)
            for item, candidate in _patches(encoder, database_images, transform, wanted, config.layer, work):
                for query, column in asked_by[item]:
                    local[query, column] = mutual_match_score(patches[query], candidate)
            advance(len(block))
    return (1 - config.local_weight) * first.similarity.to(device) + config.local_weight * local


def _patches(
    encoder: Encoder,
    source: ImageSource,
    transform: FeatureTransform,
    indices: NDArray[np.int64],
    layer: int,
    work: Work,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index, patches of length 1) of the readable images; the unreadable were named when they were embedded."""
    for batch in iterate_patches(encoder, source, transform, layer, work, Skipped(), indices):
        yield from zip(batch.indices.tolist(), F.normalize(batch.patches, dim=-1), strict=True)
