"""What embeddings look like without any label: rank, spread, and how alike patches and image are.

`effective_rank` is cheap enough to be watched during training: a fall towards 1 is a collapse that a loss hides.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from glocal.data.source import ImageSource
from glocal.errors import DataError, ModelError
from glocal.evaluation.base import DataLike, ProtocolConfig, Work, open_split
from glocal.evaluation.features.crops import RandomCrops
from glocal.evaluation.features.embeddings import extract_embeddings
from glocal.evaluation.features.extraction import (
    LARGEST_TILE,
    FeatureTransform,
    Skipped,
    check_patches,
    iterate_features,
)
from glocal.evaluation.features.progress import progress_bar
from glocal.evaluation.results import Result
from glocal.models.encoder import Encoder

PAIR_CHUNK = 1024
"""Rows of the distance matrix held at once."""


def effective_rank(embeddings: Float[Tensor, "rows dim"]) -> Float[Tensor, ""]:
    """RankMe (Garrido et al. 2023): exp of the entropy of the normalised singular values, in 1..min(rows, dim).

    Embeddings are taken as they are, not centred, as in the paper, so a constant offset lowers it. Departure: computed
    from eigenvalues of the Gram matrix of the smaller side in float64, where the paper takes an SVD; equal up to
    singular values below 1e-8 of the largest. A matrix of zeros has rank 1.

    >>> round(float(effective_rank(torch.eye(3))), 4)
    3.0
    """
    x = embeddings.detach().double()
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=torch.finfo(x.dtype).tiny)
    rank: Tensor = torch.special.entr(share).sum().exp()
    return rank


def alignment(one: Float[Tensor, "rows dim"], other: Float[Tensor, "rows dim"]) -> Float[Tensor, ""]:
    """Mean squared distance of unit embeddings of two views of an image (Wang and Isola 2020, alpha 2); 0 is best."""
    return (normalize(one.double(), dim=1) - normalize(other.double(), dim=1)).square().sum(1).mean()


def uniformity(embeddings: Float[Tensor, "rows dim"]) -> Float[Tensor, ""]:
    """Log of the mean of exp(-2 |x - y|^2) over pairs of rows (Wang and Isola 2020, t = 2); lower is more spread.

    0 when all embeddings agree, about -4 when spread evenly over a sphere of many dimensions.

    Raises:
        DataError: for fewer than two rows.
    """
    rows = len(embeddings)
    if rows < 2:
        raise DataError(f"Uniformity compares images with each other and needs 2 or more; got {rows}.")
    x = normalize(embeddings.double(), dim=1)
    # A row against itself adds exp(0) = 1, taken off again. The sum needs no log-sum-exp: its terms are in [e^-8, 1].
    total = sum((4 * (part @ x.T) - 4).clamp(max=0).exp().sum() for part in torch.split(x, PAIR_CHUNK))
    return ((torch.as_tensor(total) - rows) / (rows * (rows - 1))).clamp(min=torch.finfo(x.dtype).tiny).log()


def dimension_std(embeddings: Float[Tensor, "rows dim"]) -> Float[Tensor, " dim"]:
    """Deviation of each dimension of unit embeddings, times sqrt(dim): about 1 when spread evenly, 0 when collapsed."""
    x = normalize(embeddings.double(), dim=1)
    spread: Tensor = x.std(0, correction=0) * x.shape[1] ** 0.5
    return spread


def patch_class_similarity(
    patches: Float[Tensor, "images patches dim"], cls: Float[Tensor, "images dim"]
) -> Float[Tensor, " images"]:
    """Mean cosine between an image's patches and its class embedding. Near 1, patches have lost their place."""
    return cosine_similarity(patches, cls[:, None], dim=2).mean(1)


def patch_similarity(patches: Float[Tensor, "images patches dim"]) -> Float[Tensor, " images"]:
    """Mean cosine between different patches of an image; near 1 all patches agree. 1 for a single patch."""
    unit = normalize(patches, dim=2)
    count = unit.shape[1]
    if count == 1:
        return unit.new_ones(len(unit))
    own = unit.square().sum((1, 2))
    return (unit.sum(1).square().sum(1) - own) / (count * (count - 1))


class Statistics(ProtocolConfig):
    """Statistics of embeddings and patches; no labels needed."""

    protocol: ClassVar[str] = "statistics"
    images: Annotated[int, Field(ge=2)] = 5000
    """At most this many images, spread over the source."""
    transform: FeatureTransform = FeatureTransform()
    crop_area: tuple[float, float] = (0.25, 1.0)
    """Area, as a share of the image, of the two random crops that alignment compares."""
    seed: int = 0

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Measure on the test split, or on whatever there is without one."""
        source = open_split(data, "test", "val", "images", "all", "train")
        chosen = np.unique(np.linspace(0, len(source) - 1, min(self.images, len(source))).round().astype(np.int64))
        source = source if len(chosen) == len(source) else source.subset(chosen)
        transform = self.transform.resolve(encoder)
        found = extract_embeddings(encoder, source, transform, ["cls"], work)
        cls = found.first
        if len(cls) < 2:
            raise DataError(f"{source.name} has {len(cls)} readable image; statistics need 2 or more.")
        numbers = {
            "effective_rank": float(effective_rank(cls)),
            "uniformity": float(uniformity(cls)),
            "alignment": self._alignment(encoder, source, transform, work),
            "dimension_std_mean": float(dimension_std(cls).mean()),
            "dimension_std_min": float(dimension_std(cls).min()),
        }
        notes = found.skipped.notes()
        try:
            numbers |= _patch_statistics(encoder, source, transform, work)
        except ModelError as error:
            notes.append(f"statistics of patches left out: {error}")
        return self.result(
            encoder,
            {"images": source},
            numbers,
            notes=notes,
            transform=transform.model_dump(),
            resolution=transform.size,
            layer="-1",
            norm="final norm",
            measured_images=len(cls),
        )

    def _alignment(self, encoder: Encoder, source: ImageSource, transform: FeatureTransform, work: Work) -> float:
        squash = transform.model_copy(update={"resize": "squash"})
        views = [
            extract_embeddings(encoder, RandomCrops(source, self.seed, view, self.crop_area), squash, ["cls"], work)
            for view in (0, 1)
        ]
        return float(alignment(views[0].first, views[1].first))


def _patch_statistics(
    encoder: Encoder, source: ImageSource, transform: FeatureTransform, work: Work
) -> dict[str, float]:
    """Means over images of what needs all patches, streamed; whole tiles, so that no bit depends on a batch size."""
    values: list[Float[Tensor, "images 2"]] = []
    with progress_bar(f"{source.name}: patches", len(source), work.progress) as advance:
        for batch in iterate_features(encoder, source, transform, LARGEST_TILE, work.workers, skipped=Skipped()):
            advance(batch.seen)
            for found in batch.features:
                check_patches(encoder, found.patches, found.grid)
                pair = patch_class_similarity(found.patches, found.cls), patch_similarity(found.patches)
                values.append(torch.stack(pair, dim=1).double().cpu())
    to_class, among = torch.cat(values).mean(0).tolist()
    return {"patch_cls_similarity": to_class, "patch_similarity": among}
