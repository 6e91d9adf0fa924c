"""What embeddings look like without any label: rank, spread, and how alike patches and image are.

`effective_rank` is cheap enough to be watched during training: a fall towards 1 is a collapse that a loss hides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from glocal.data.source import ImageSource
from glocal.errors import DataError, ModelError
from glocal.evaluation.base import DataLike, ProtocolConfig, open_split
from glocal.evaluation.intervals import Samples, jackknife
from glocal.evaluation.results import Result
from glocal.extraction.embedding_statistics import (
    alignment,
    dimension_std,
    effective_rank,
    patch_class_similarity,
    patch_similarity,
    uniformity,
)
from glocal.extraction.feature_stream import Skipped, check_patches, iterate_features
from glocal.extraction.image_embeddings import extract_embeddings
from glocal.extraction.progress import progress_bar
from glocal.extraction.random_crops import RandomCrops
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.models.preprocessing import LARGEST_TILE, FeatureTransform

LEAST_FOR_INTERVALS = 20
"""Images from which leaving a tenth of them out tells how sure a figure is."""


class Statistics(ProtocolConfig):
    """Statistics of embeddings and patches; no labels needed."""

    protocol: ClassVar[str] = "statistics"
    version: ClassVar[int] = 2
    images: Annotated[int, Field(ge=2)] = 5000
    """At most this many images, spread over the source."""
    transform: FeatureTransform = FeatureTransform()
    crop_area: tuple[float, float] = (0.25, 1.0)
    """Area, as a share of the image, of the two random crops that alignment compares."""
    seed: int = 0
    """Of the images and pairs that are drawn."""

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Measure on the test split, or on whatever there is without one."""
        source = open_split(data, "test", "val", "images", "all", "train")
        chosen = np.unique(
            np.linspace(0, len(source) - 1, min(self.images, len(source))).round().astype(np.int64)
        )
        source = source if len(chosen) == len(source) else source.subset(chosen)
        transform = self.transform.resolve(encoder)
        embeddings = extract_embeddings(encoder, source, transform, ["cls"], work)
        cls = embeddings.first
        if len(cls) < 2:
            raise DataError(f"{source.name} has {len(cls)} readable image; statistics need 2 or more.")
        one, other = self._crops(encoder, source, transform, work)
        figures: dict[str, Callable[[NDArray[np.int64]], float]] = {
            "effective_rank": lambda places: float(effective_rank(cls[places])),
            "uniformity": lambda places: float(uniformity(cls[places])),
            "alignment": lambda places: float(alignment(one[places], other[places])),
            "dimension_std_mean": lambda places: float(dimension_std(cls[places]).mean()),
        }
        numbers = {name: figure(np.arange(len(cls))) for name, figure in figures.items()}
        numbers["dimension_std_min"] = float(dimension_std(cls).min())
        notes, samples = embeddings.skipped.notes(), {}
        try:
            of_patches = _patch_statistics(encoder, source, transform, work)
            numbers |= {name: float(values.mean()) for name, values in of_patches.items()}
            samples = {name: Samples(values.numpy()[:, None]) for name, values in of_patches.items()}
        except ModelError as error:
            notes.append(f"statistics of patches left out: {error}")
        result = self.result(
            encoder,
            {"images": source},
            numbers,
            notes=notes,
            transform=transform.model_dump(),
            resolution=transform.size,
            layer="-1",
            norm="final norm",
            measured_images=len(cls),
            samples=samples,
        )
        if len(cls) >= LEAST_FOR_INTERVALS:
            result.intervals = {name: list(jackknife(figure, len(cls))) for name, figure in figures.items()}
        return result

    def _crops(
        self, encoder: Encoder, source: ImageSource, transform: FeatureTransform, work: Work
    ) -> tuple[Tensor, Tensor]:
        """Class embeddings of two random crops of every image."""
        squash = transform.model_copy(update={"resize": "squash"})
        views = [
            extract_embeddings(
                encoder,
                RandomCrops(source, self.seed, view, self.crop_area, relative=False),
                squash,
                ["cls"],
                work,
            )
            for view in (0, 1)
        ]
        return views[0].first, views[1].first


def _patch_statistics(
    encoder: Encoder, source: ImageSource, transform: FeatureTransform, work: Work
) -> dict[str, Float[Tensor, " images"]]:
    """What needs all patches, by image, streamed; whole tiles, so that no bit depends on a batch size."""
    values: list[Float[Tensor, "images 2"]] = []
    with progress_bar(f"{source.name}: patches", len(source), work.progress) as advance:
        for batch in iterate_features(
            encoder, source, transform, LARGEST_TILE, work.workers, skipped=Skipped()
        ):
            advance(batch.seen)
            for features in batch.features:
                check_patches(encoder, features.patches, features.grid)
                pair = (
                    patch_class_similarity(features.patches, features.cls),
                    patch_similarity(features.patches),
                )
                values.append(torch.stack(pair, dim=1).double().cpu())
    to_class, among = torch.unbind(torch.cat(values), dim=1)
    return {"patch_cls_similarity": to_class, "patch_similarity": among}
