"""What every protocol shares that ranks a database for queries: descriptors, distractors, and its result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from glocal.data.open import open_source
from glocal.data.source import ImageSource
from glocal.evaluation.base import DataLike, ProtocolConfig
from glocal.evaluation.intervals import Samples
from glocal.evaluation.results import Result
from glocal.evaluation.retrieval.descriptors import DescriptorConfig
from glocal.extraction.image_embeddings import Embeddings
from glocal.models.encoder import Encoder


class Figures(NamedTuple):
    """What rankings give: figures, a row a group of queries, and what each query adds."""

    numbers: dict[str, float]
    rows: list[dict[str, Any]]
    samples: dict[str, Samples]


class RankingConfig(ProtocolConfig):
    """A protocol that ranks a database for every query by descriptors of length 1."""

    descriptor: DescriptorConfig = DescriptorConfig()
    distractors: str | None = None
    """Images added to the database."""

    def extra(self, data: DataLike, name: str) -> ImageSource | None:
        """The images of a role that need not be there: an open source of that name, or what the setting opens."""
        if isinstance(data, Mapping) and name in data:
            return data[name]
        place = getattr(self, name)
        return None if place is None else open_source(place)

    def ranked(
        self,
        encoder: Encoder,
        sources: Mapping[str, ImageSource],
        described: Iterable[Embeddings],
        figures: Figures,
        notes: Sequence[str],
        database_size: int,
    ) -> Result:
        """The result, with notes on what descriptors lack, each said once."""
        told = [*notes, *(note for embeddings in described for note in embeddings.skipped.notes())]
        return self.result(
            encoder,
            sources,
            figures.numbers,
            rows=figures.rows,
            notes=list(dict.fromkeys(told)),
            resolution=self.descriptor.sizes(encoder),
            layer=-1,
            norm="final norm, descriptors of length 1",
            database_size=database_size,
            samples=figures.samples,
        )
