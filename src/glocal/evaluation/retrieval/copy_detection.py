"""Copy detection: find the reference that a changed query was made from, among all references and distractors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from glocal.data.source import ImageSource
from glocal.errors import ConfigError, DataError
from glocal.evaluation.base import DataLike
from glocal.evaluation.intervals import Samples
from glocal.evaluation.results import Result
from glocal.evaluation.retrieval.copy_data import CopyData, open_copy_folder, open_pairs
from glocal.evaluation.retrieval.descriptors import (
    DescriptorConfig,
    describe,
    learn_whitening,
    rows_of,
    whiten,
)
from glocal.evaluation.retrieval.ground_truth import read_ground_truth
from glocal.evaluation.retrieval.ranked import Figures, RankingConfig
from glocal.evaluation.retrieval.ranking import ranks_of_positives, trapezoid_average_precision
from glocal.extraction.nearest import nearest
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder


class CopyDetection(RankingConfig):
    """Copy detection on Copydays, or on queries and references with a ground_truth.csv (ISC/DISC21).

    DINO's Copydays figure (mAP 85.8 on `strong`, ViT-B/8) is `descriptor.readout=cls_gem descriptor.size=320` with
    whitening learnt on 20,000 and 10,000 distractors from YFCC100M. Its mAP is per attack, by the trapezoid rule.

    ISC's measures are micro-AP and recall at precision 90 over one ranking of all pairs, queries without a copy
    included; they are given when there are such queries or a csv.
    """

    protocol: ClassVar[str] = "copy_detection"
    version: ClassVar[int] = 2

    descriptor: DescriptorConfig = DescriptorConfig(readout="cls_gem")
    whitening: str | None = None
    """Images to learn PCA-whitening on, apart from queries and references; null: no whitening."""
    whitening_dim: Annotated[int, Field(ge=1)] | None = None
    """Dimensions kept; null: all."""
    references: str | None = None
    """Reference images, when they don't lie beside the queries."""
    ground_truth: str | None = None
    """The csv, when it doesn't lie beside the queries."""
    candidates: Annotated[int, Field(ge=1)] = 10
    """Pairs a query puts into the one ranking, its best ones (ISC allows 10 a query on average). Ranks and mAP are over
    the whole database in any case."""

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Measure.

        `data` is a folder in one of the two layouts, or open sources named `queries`, `references` and perhaps
        `distractors` and `whitening`, with `ground_truth` set.
        """
        opened, extra = self._open(data)
        roles: dict[str, ImageSource] = {"queries": opened.queries, "references": opened.references, **extra}
        # DINO whitens descriptors as they are, and brings them to length 1 afterwards.
        unit = "whitening" not in roles
        descriptors = {
            role: describe(encoder, source, self.descriptor, work, unit) for role, source in roles.items()
        }
        vectors = {role: embeddings.first for role, embeddings in descriptors.items()}
        if "whitening" in vectors:
            learnt = learn_whitening(vectors.pop("whitening"), self.whitening_dim)
            vectors = {role: whiten(v, learnt) for role, v in vectors.items()}
        elif self.whitening_dim is not None:
            raise ConfigError(f"whitening_dim={self.whitening_dim} needs whitening=, images to learn it on.")
        database = torch.cat([vectors["references"], vectors.get("distractors", vectors["references"][:0])])
        rows = rows_of(descriptors["references"], len(opened.references))
        kept, positives, unreadable = _readable(opened, descriptors["queries"].indices, rows)
        attacks = [opened.attack[i] for i in kept]
        query_rows = torch.from_numpy(rows_of(descriptors["queries"], len(opened.queries))[kept])
        device = encoder.device
        figures = measure(
            vectors["queries"][query_rows].to(device),
            database.to(device),
            positives,
            attacks,
            self.candidates,
        )
        return self.ranked(
            encoder, roles, descriptors.values(), figures, [*opened.notes, *unreadable], len(database)
        )

    def _open(self, data: DataLike) -> tuple[CopyData, dict[str, ImageSource]]:
        """Open the images by role; sources given by name win over paths in the settings."""
        given = {role: self.extra(data, role) for role in ("distractors", "whitening")}
        extra = {role: source for role, source in given.items() if source is not None}
        if not isinstance(data, Mapping):
            return open_copy_folder(Path(data), self.references, self.ground_truth), extra
        missing = [role for role in ("queries", "references") if role not in data]
        if missing or self.ground_truth is None:
            need = [*missing, *(["ground_truth= (a csv)"] if self.ground_truth is None else [])]
            raise DataError(
                f"Copy detection on open sources lacks {', '.join(need)}; got {', '.join(data) or 'none'}."
            )
        truth = read_ground_truth(Path(self.ground_truth))
        return open_pairs(data["queries"], data["references"], truth), extra


def measure(
    queries: Float[Tensor, "queries dim"],
    database: Float[Tensor, "database dim"],
    positives: list[NDArray[np.int64]],
    attacks: list[str],
    candidates: int = 10,
) -> Figures:
    """All measures from descriptors of length 1, in percent, one row an attack, and what each query adds.

    mAP and recall@1 are means over the queries that have a reference; ties count against the query. micro-AP and
    recall at precision 90 rank the `candidates` best pairs of every query, those without a reference included.

    Args:
        queries: one row a query.
        database: references, then distractors.
        positives: database rows of each query's references; empty for a query without a copy.
        attacks: a name a query, perhaps empty.
        candidates: pairs a query puts into the one ranking.

    Raises:
        DataError: when no query has a reference.
    """
    asked = np.array([len(p) > 0 for p in positives])
    if not asked.any():
        raise DataError(f"None of {len(positives)} queries has a reference, so nothing can be measured.")
    places = np.flatnonzero(asked)
    with_copy = queries[torch.from_numpy(places).to(queries.device)]
    ranks = ranks_of_positives(with_copy, database, [positives[i] for i in places])
    precision = 100 * np.array([trapezoid_average_precision(r, len(r)) for r in ranks])[:, None]
    first = np.array([100.0 * (int(r.min()) == 0) for r in ranks])[:, None]
    pairs = _candidates(queries, database, positives, candidates)
    samples = {"map": Samples(precision), "recall_at_1": Samples(first)}
    samples |= {name: Samples(pairs, name) for name in ("micro_ap", "recall_at_precision_90")}
    numbers: dict[str, float] = {"queries": len(positives), "queries_without_reference": int((~asked).sum())}
    rows = []
    names = np.array([attacks[i] for i in places])
    for name in sorted(set(names.tolist()) - {""}):
        of_attack = names == name
        samples[f"map/{name}"] = Samples(precision[of_attack])
        recall = Samples(first[of_attack]).figure()
        row = {"attack": name, "queries": int(of_attack.sum()), "map": samples[f"map/{name}"].figure()}
        rows.append({**row, "recall_at_1": recall})
    return Figures(numbers, rows, samples)


def _candidates(
    queries: Tensor, database: Tensor, positives: list[NDArray[np.int64]], candidates: int
) -> Float[np.ndarray, "queries columns"]:
    """Of every query the scores and verdicts of its candidates, and the number of its positives."""
    best = nearest(queries, database, candidates)
    index = best.rows.cpu().numpy()
    is_match = np.stack([np.isin(row, right) for row, right in zip(index, positives, strict=True)])
    counts = np.array([len(p) for p in positives])
    return np.concatenate([best.similarity.cpu().numpy(), is_match, counts[:, None]], axis=1)


def _readable(
    data: CopyData, readable: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]], list[str]]:
    """Queries that can be measured: readable, with all their references readable; and a note on the others."""
    known = np.zeros(len(data.queries), bool)
    known[readable] = True
    whole = np.array([bool((rows[p] >= 0).all()) for p in data.positives])
    kept = np.flatnonzero(known & whole)
    notes = []
    if (known & ~whole).any():
        notes.append(f"{int((known & ~whole).sum())} queries have an unreadable reference and were left out.")
    return kept, [rows[data.positives[i]] for i in kept], notes
