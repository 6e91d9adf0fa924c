"""Instance retrieval: all images of the query's place or thing, ahead of the rest of a database."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from glocal.data.source import ImageSource
from glocal.errors import ConfigError, DataError
from glocal.evaluation.base import DataLike
from glocal.evaluation.intervals import Samples
from glocal.evaluation.results import Result
from glocal.evaluation.retrieval.descriptors import DescriptorConfig, describe, rows_of
from glocal.evaluation.retrieval.ranked import Figures, RankingConfig
from glocal.evaluation.retrieval.ranking import (
    precision_at,
    ranks_of_positives,
    reranked_ranks,
    trapezoid_average_precision,
)
from glocal.evaluation.retrieval.reranking import RerankingConfig, rerank
from glocal.evaluation.retrieval.retrieval_data import (
    BoxCrops,
    Judgement,
    RetrievalData,
    open_class_folders,
    open_pairs,
    open_retrieval_folder,
)
from glocal.extraction.image_embeddings import Embeddings
from glocal.extraction.nearest import nearest
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder

PRECISION_AT = (1, 5, 10)


class ImageRetrieval(RankingConfig):
    """Retrieval on revisited Oxford/Paris, on class folders, or on a csv of (query, positive) pairs.

    DINO's figures are cosines of class tokens: Oxford with `descriptor.size=224`, Paris with `descriptor.size=512
    descriptor.scales=[1,0.7071,0.5]` (ViT-S/16 on ImageNet: Oxford M 37.2, H 13.9; Paris M 63.1, H 34.4). mAP is by
    the trapezoid rule and mP@k stops at the last positive, both as in the revisited protocol. Queries without a
    positive at a difficulty don't count there.
    """

    protocol: ClassVar[str] = "retrieval"
    version: ClassVar[int] = 2

    descriptor: DescriptorConfig = DescriptorConfig(resize="longer")
    crop_queries: bool = False
    """Cut queries to their box, where the ground truth has boxes, as the revisited protocol does; the figures above are
    DINO's, of whole queries."""
    database: str | None = None
    """Database images of a csv layout, when they don't lie beside the queries."""
    ground_truth: str | None = None
    """The csv of pairs, when it doesn't lie in the data's folder."""
    class_queries: Annotated[int, Field(ge=1)] | None = 2000
    """Most queries where any labelled image could be one, spread evenly; null: all."""
    reranking: RerankingConfig | None = None
    """Let matched patches decide among the first answers (ours); null: descriptors alone."""

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Measure.

        `data` is a folder in one of the layouts, or open sources: `queries` and `database` with `ground_truth` set, or
        `database` (or `test`) alone with labels; perhaps `distractors`.
        """
        opened, distractors = self._open(data)
        queries = opened.queries
        if self.crop_queries and opened.query_boxes is not None:
            queries = BoxCrops(queries, opened.query_boxes)
        base = describe(encoder, opened.database, self.descriptor, work)
        query_embeddings = _query_descriptors(encoder, queries, opened, base, self.descriptor, work)
        described, roles = [query_embeddings, base], {"queries": opened.queries, "database": opened.database}
        if distractors is not None:
            described.append(describe(encoder, distractors, self.descriptor, work))
            roles["distractors"] = distractors
        vectors, device = torch.cat([embeddings.first for embeddings in described[1:]]), encoder.device
        judgements, lost = _readable(
            opened.judgements, query_embeddings.indices, rows_of(base, len(opened.database))
        )
        ranked = self._rank(
            encoder, queries, opened.database, query_embeddings, base, vectors.to(device), judgements, work
        )
        figures = Figures({}, [], {})
        empty = [name for name, ranks in ranked.items() if not any(map(len, ranks))]
        if empty and len(empty) < len(ranked):
            lost.append(f"No query has a right answer at difficulty {', '.join(empty)}; left out.")
            ranked = {name: ranks for name, ranks in ranked.items() if name not in empty}
        for name, ranks in ranked.items():
            samples, lead = by_query(ranks), "" if name == "all" else f"{name}/"
            row = {key: values.figure() for key, values in samples.items()}
            row["queries"] = figures.numbers[f"{lead}queries"] = len(samples["map"].values)
            figures.rows.append({"difficulty": name, **row})
            figures.samples.update({f"{lead}{key}": values for key, values in samples.items()})
        return self.ranked(encoder, roles, described, figures, [*opened.notes, *lost], len(vectors))

    def _rank(
        self,
        encoder: Encoder,
        queries: ImageSource,
        database: ImageSource,
        query_embeddings: Embeddings,
        base: Embeddings,
        vectors: Tensor,
        judgements: Mapping[str, Judgement],
        work: Work,
    ) -> dict[str, list[NDArray[np.int64]]]:
        """Ranks of the positives of every query at every difficulty."""
        asked = query_embeddings.first.to(vectors.device)
        if self.reranking is None:
            return {
                name: ranks_of_positives(asked, vectors, judged.positives, judged.ignored)
                for name, judged in judgements.items()
            }
        if len(vectors) > len(base.indices):
            raise ConfigError("reranking= can't look at distractors yet; leave one of the two out.")
        first = nearest(asked, vectors, self.reranking.count)
        images = (queries.subset(query_embeddings.indices.tolist()), database.subset(base.indices.tolist()))
        scores = rerank(encoder, *images, first, self.descriptor, self.reranking, work)
        return {
            name: reranked_ranks(asked, vectors, first.rows, scores, judged.positives, judged.ignored)
            for name, judged in judgements.items()
        }

    def _open(self, data: DataLike) -> tuple[RetrievalData, ImageSource | None]:
        distractors = self.extra(data, "distractors")
        if not isinstance(data, Mapping):
            return open_retrieval_folder(
                Path(data), self.database, self.ground_truth, self.class_queries
            ), distractors
        if "queries" in data and "database" in data and self.ground_truth is not None:
            return open_pairs(data["queries"], data["database"], Path(self.ground_truth)), distractors
        alone = next((data[name] for name in ("database", "test", "val") if name in data), None)
        if alone is None or "queries" in data:
            raise DataError(
                f"Retrieval got the sources {', '.join(data) or 'none'}. Give queries, database and ground_truth=CSV, "
                "or one labelled source named database or test."
            )
        return open_class_folders(alone, self.class_queries), distractors


def by_query(ranks: list[NDArray[np.int64]]) -> dict[str, Samples]:
    """Average precision and mP@1, 5, 10 of every query that has a positive, in percent.

    Raises:
        DataError: when no query has one.
    """
    asked = [r for r in ranks if len(r)]
    if not asked:
        raise DataError(
            f"None of {len(ranks)} queries has a right answer in the database, so nothing can be measured."
        )
    scores = {"map": [trapezoid_average_precision(r, len(r)) for r in asked]}
    scores |= {f"mp_at_{count}": [precision_at(r, count) for r in asked] for count in PRECISION_AT}
    return {name: Samples(100 * np.array(values)[:, None]) for name, values in scores.items()}


def _query_descriptors(
    encoder: Encoder,
    queries: ImageSource,
    opened: RetrievalData,
    base: Embeddings,
    config: DescriptorConfig,
    work: Work,
) -> Embeddings:
    """Embed the queries, or pick them out of the database's embeddings when they are images of it."""
    if opened.query_places is None:
        return describe(encoder, queries, config, work)
    rows = rows_of(base, len(opened.database))[opened.query_places]
    kept = np.flatnonzero(rows >= 0)
    return Embeddings({"descriptor": base.first[torch.from_numpy(rows[kept])]}, kept, None, base.skipped)


def _readable(
    judgements: Mapping[str, Judgement], queries: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[dict[str, Judgement], list[str]]:
    """Judgements of the readable queries, in rows of the readable database; and a note on the positives lost."""
    lost: set[int] = set()
    kept = {}
    for name, judged in judgements.items():
        lost.update(int(i) for q in queries for i in judged.positives[q] if rows[i] < 0)
        lists = [[rows[items[q]] for q in queries] for items in (judged.positives, judged.ignored)]
        kept[name] = Judgement(*([row[row >= 0] for row in items] for items in lists))
    note = f"{len(lost)} positives couldn't be read and count as absent from the database."
    return kept, [note] if lost else []
