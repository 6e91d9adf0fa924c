"""From a query to the images of an index that answer it, best first, each with the patches that say why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from glocal.errors import ConfigError, GlocalError, UnreadableImageError
from glocal.extraction.feature_stream import Skipped, iterate_features
from glocal.lookup.bank import Engine
from glocal.lookup.index import Index
from glocal.lookup.query import Box, Query, Views, patch_box, query_box, query_images, query_patch
from glocal.matching.mutual_patches import mutual_match_score, mutual_patches
from glocal.models.encoder import Encoder

LOCAL_WEIGHT = 0.5
"""Share of the patches in the score of an image that is re-ranked; the rest is the cosine of the class embeddings."""
EVIDENCE = 12
"""Matched patches kept of an answer, the most alike."""


class MatchedPatch(NamedTuple):
    """A patch of the query and the patch of the answer it matches; places are shares of the sides."""

    query: Box
    answer: Box
    cosine: float


@dataclass
class Answer:
    """One image of the index."""

    row: int
    key: str
    score: float
    """What answers are ordered by."""
    cosine: float
    """Of the class embeddings; for a box or patch the best of its patches."""
    view: int = 0
    """Which of the query's views it answers."""
    matches: tuple[MatchedPatch, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        matches = [{"query": m.query, "answer": m.answer, "cosine": m.cosine} for m in self.matches]
        return {"key": self.key, "score": self.score, "cosine": self.cosine, "matches": matches}


@dataclass
class Answers:
    """Answers, best first, and what was asked."""

    query: Query
    answers: list[Answer]


def search(
    index: str | Path | Index,
    images: Sequence[Image.Image | str | Path] | Image.Image | str | Path,
    *,
    box: Box | None = None,
    patch: tuple[int, int] | None = None,
    count: int = 10,
    candidates: int = 100,
    views: Views = "whole",
    rerank: bool = True,
    engine: Engine = "auto",
    device: str = "auto",
    encoder: Encoder | None = None,
) -> Answers:
    """Find images of an index.

    Whole images are looked up by class embedding; the first `candidates` are ordered anew by how much of the query is
    found in them, patch by patch. A box or a patch is looked up among all patches of the index.

    Args:
        index: an index, or its folder.
        images: one image or several that are looked for together (the mean of their embeddings).
        box: left, top, right, bottom in pixels of the only image: what is looked for in all images.
        patch: row and column on the model's grid of the only image.
        count: how many answers.
        candidates: how many are looked at by patches.
        views: `copies` looks for parts of the image and for it turned, too, to find what it was made from.
        rerank: order by matched patches; without, by class embeddings alone.
        engine: exact, faiss, or chosen by size.
        device: where the model looks at the query.
        encoder: the index's model, where it is loaded already.

    Raises:
        ConfigError: for a box or patch outside the image, or several images with one.
        DataError: for no index, or an image that can't be read.

    >>> search("photos.index", "logo.jpg", box=(10, 10, 60, 40)).answers[0].key  # doctest: +SKIP
    'a/1.jpg'
    """
    opened = index if isinstance(index, Index) else Index(index)
    if encoder is None:
        encoder = opened.encoder(device)
    else:
        opened.check(encoder)
    given = [images] if isinstance(images, Image.Image | str | Path) else list(images)
    if box is None and patch is None:
        query = query_images(encoder, opened.about.transform, given, views)
        together = views == "whole"
        return Answers(query, _by_image(opened, encoder, query, together, count, candidates, rerank, engine))
    if len(given) != 1 or (box is not None and patch is not None) or views != "whole":
        raise ConfigError(
            "A box or a patch is looked for in one image, one of them at a time, and views=whole."
        )
    transform = opened.about.transform
    if box is not None:
        query = query_box(encoder, transform, given[0], box)
    else:
        assert patch is not None
        query = query_patch(encoder, transform, given[0], *patch)
    return Answers(query, _by_patches(opened, query, count, candidates, engine))


def _by_image(
    index: Index,
    encoder: Encoder,
    query: Query,
    together: bool,
    count: int,
    candidates: int,
    rerank: bool,
    engine: Engine,
) -> list[Answer]:
    """Several images are one mean; views of one image each look for themselves, an image counts with its best."""
    asked = F.normalize(query.cls.mean(0, keepdim=True), dim=1) if together else query.cls
    near = index.bank(engine).nearest(asked, max(count, candidates))
    best: dict[int, tuple[float, int]] = {}
    for view, (cosines, rows) in enumerate(zip(near.similarity.tolist(), near.rows.tolist(), strict=True)):
        for cosine, row in zip(cosines, rows, strict=True):
            if np.isfinite(cosine) and cosine > best.get(row, (-np.inf, 0))[0]:
                best[row] = (cosine, view)
    order = sorted(best, key=lambda row: (-best[row][0], row))[: max(count, candidates)]
    if not rerank:
        return [Answer(row, index.key(row), best[row][0], *best[row]) for row in order[:count]]
    patches_of = patch_reader(index, encoder, order)
    answers = []
    for row in order:
        cosine, view = best[row]
        candidate = patches_of(row)
        if candidate is None:
            continue
        # Several images looked for together: the one that matches best says why.
        seen = range(len(query.patches)) if together else [view]
        local, view = max((float(mutual_match_score(query.patches[v], candidate)), v) for v in seen)
        score = (1 - LOCAL_WEIGHT) * cosine + LOCAL_WEIGHT * local
        answers.append(Answer(row, index.key(row), score, cosine, view))
    answers = sorted(answers, key=lambda a: (-a.score, a.row))[:count]
    for answer in answers:
        candidate = patches_of(answer.row)
        assert candidate is not None
        answer.matches = _matches(query.patches[answer.view], candidate, index.about.grid)
    return answers


def _by_patches(index: Index, query: Query, count: int, candidates: int, engine: Engine) -> list[Answer]:
    """Images that hold patches near those looked for, by the mean over these of the nearest patch in the image."""
    assert query.chosen is not None
    asked = query.patches[0][query.chosen]
    each = index.about.grid[0] * index.about.grid[1]
    near = index.patch_bank(engine).nearest(asked, candidates)
    images = np.unique(near.rows[torch.isfinite(near.similarity)].numpy() // each)
    answers = []
    for row in images.tolist():
        cosine = asked @ index.patches_of(row).T
        best, where = cosine.max(dim=1)
        grid = index.about.grid
        matches = sorted(
            (
                MatchedPatch(patch_box(int(q), grid), patch_box(int(a), grid), float(c))
                for q, a, c in zip(query.chosen, where, best, strict=True)
            ),
            key=lambda match: -match.cosine,
        )
        answers.append(
            Answer(row, index.key(row), float(best.mean()), float(best.max()), 0, tuple(matches[:EVIDENCE]))
        )
    return sorted(answers, key=lambda a: (-a.score, a.row))[:count]


def patch_reader(
    index: Index, encoder: Encoder, rows: Sequence[int]
) -> Callable[[int], Float[Tensor, "patches dim"] | None]:
    """Patches of these images: as indexed, or else computed from the images now; None for one that is gone.

    Raises:
        ConfigError: when the index holds no patches and its images are not where they were.
    """
    if index.about.patches:
        return index.patches_of
    try:
        source = index.source
    except GlocalError as error:
        raise ConfigError(
            f"Re-ranking needs patches: {index.path} holds none, and its images can't be opened ({error}). "
            "Bring them back, make the index with patches=true, or search with rerank=false."
        ) from error
    places: dict[int, int] = {int(index.places[row]): row for row in rows if index.places[row] < len(source)}
    wanted: NDArray[np.int64] = np.array(sorted(places), np.int64)
    patches_by_row: dict[int, Tensor] = {}
    for batch in iterate_features(encoder, source, index.about.transform, indices=wanted, skipped=Skipped()):
        if len(batch.indices):
            unit = F.normalize(batch.features[0].patches.float(), dim=-1).cpu()
            patches_by_row |= {
                places[int(i)]: patches for i, patches in zip(batch.indices, unit, strict=True)
            }
    return patches_by_row.get


def read_row(index: Index, row: int) -> Image.Image | None:
    """The image of a row, where it can still be read."""
    try:
        return index.source.read(int(index.places[row]))
    except (GlocalError, UnreadableImageError, IndexError):
        return None


def _matches(
    query: Float[Tensor, "patches dim"], candidate: Float[Tensor, "patches dim"], grid: tuple[int, int]
) -> tuple[MatchedPatch, ...]:
    pairs = mutual_patches(query, candidate)
    return tuple(
        MatchedPatch(patch_box(int(q), grid), patch_box(int(a), grid), float(c))
        for q, a, c in list(zip(*pairs, strict=True))[:EVIDENCE]
    )
