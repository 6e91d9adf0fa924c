"""Weighted k-nearest-neighbour classification on frozen embeddings: no training, no setting to tune but k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from glocal.data.source import ImageSource
from glocal.errors import ConfigError, DataError
from glocal.evaluation.base import DataLike, open_split
from glocal.evaluation.classification.labelled import TOP, Answers, LabelledConfig, Task
from glocal.evaluation.classification.labels import align_labels, labelled_rows
from glocal.extraction.feature_matrix import unit_rows
from glocal.extraction.image_embeddings import extract_embeddings
from glocal.extraction.nearest import Distance, nearest_chunks
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.models.preprocessing import FeatureTransform

UNRANKED = -1
"""In place of a class: no neighbour had another one."""


def knn_classify(
    bank: Float[Tensor, "rows dim"],
    bank_labels: Int64[Tensor, " rows"],
    queries: Float[Tensor, "queries dim"],
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    num_classes: int | None = None,
    leave_one_out: bool = False,
    distance: Distance = "cosine",
) -> dict[int, Int64[Tensor, "queries top"]]:
    """Classify each query by its k nearest bank rows, each voting with weight exp(cosine / temperature).

    The weighted k-NN of Wu et al. 2018 (eq. 7 ff.) as DINO evaluates with it. Departures: weights are divided by the
    nearest one's, which changes no ranking and can't overflow at small temperatures; a rank for which no neighbour
    votes is -1 instead of an arbitrary class.

    Args:
        bank: embeddings to look up, of any length (made unit here).
        bank_labels: their classes, 0 or more.
        queries: embeddings to classify; the bank itself with `leave_one_out`.
        ks: numbers of neighbours.
        temperature: of the weights.
        num_classes: labels are below this; null: as many as the bank has.
        leave_one_out: keep query i from finding bank row i.
        distance: `cosine`; or `L2` of the embeddings as they are, whose neighbours have one vote each (ties of votes go
            to the nearer neighbours).

    Returns:
        For each k the best classes of each query, best first (at most 5 columns); column 0 is the prediction.

    Raises:
        ConfigError: for a k below 1 or above the number of rows to look up.

    >>> knn_classify(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), ks=[1])[1][:, 0].tolist()
    [0, 1]
    """
    available = len(bank) - int(leave_one_out)
    wrong = [k for k in ks if not 1 <= k <= available]
    if wrong or not ks or temperature <= 0:
        raise ConfigError(
            f"k={wrong or list(ks)}, temperature={temperature}: allowed are k from 1 to {available}, the rows that can "
            "be looked up, and a temperature above 0."
        )
    classes = num_classes if num_classes is not None else int(bank_labels.max()) + 1
    if distance == "cosine":
        bank, queries = unit_rows(bank), unit_rows(queries)
    parts: dict[int, list[Tensor]] = {k: [] for k in ks}
    for near in nearest_chunks(queries, bank, max(ks), distance, leave_one_out):
        weights = ((near.similarity - near.similarity[:, :1]) / temperature).exp()
        if distance == "L2":
            weights = (1 - 1e-6 * torch.arange(max(ks), device=bank.device)).expand_as(weights)
        for k, ranked in _vote(weights, bank_labels[near.rows], sorted(set(ks)), classes):
            parts[k].append(ranked)
    empty = torch.empty(0, min(TOP, classes), dtype=torch.int64, device=bank.device)
    return {k: torch.cat(pieces) if pieces else empty for k, pieces in parts.items()}


class KnnConfig(LabelledConfig):
    """k-NN classification of test images by labelled training images."""

    protocol: ClassVar[str] = "knn"
    version: ClassVar[int] = 2
    ks: tuple[Annotated[int, Field(ge=1)], ...] = (10, 20, 100, 200)
    """Numbers of neighbours; those above the number of training images are left out, with a note."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Divides the similarities that neighbours vote with."""
    features: str = "cls"
    """Readout: cls, mean_patches or gem_patches, with @-2 for the block before the last; joined by +."""
    distance: Distance = "cosine"
    """cosine, with weighted votes; L2 of the embeddings as they are, with one vote a neighbour."""
    leave_one_out: bool = False
    """Classify the training images by each other; no test split is opened."""

    def readouts(self, encoder: Encoder) -> list[str]:
        """The one readout asked for, or several joined."""
        return self.features.split("+")

    def operations(self, fitted: int, asked: int, classes: int, width: int) -> float:
        """Every query with every row."""
        return 2.0 * fitted * asked * width * (self.features.count("+") + 1)

    def norm(self) -> str:
        """Unit length where the cosine compares."""
        return "final norm" + (", then unit length" if self.distance == "cosine" else "")

    def open(self, data: DataLike) -> tuple[ImageSource, ImageSource, list[str]]:
        """Both splits; training images alone for `leave_one_out`."""
        if not self.leave_one_out:
            return super().open(data)
        train = open_split(data, "train", "all")
        return train, train, []

    def answer(self, task: Task) -> Answers:
        """Classify by the nearest training images, for each k."""
        train, test, labels, device, _ = task
        bank_rows, known = labelled_rows(train, labels.train, device)
        query_rows, asked = (bank_rows, known) if test is train else labelled_rows(test, labels.test, device)
        notes = list(labels.notes)
        available = len(bank_rows) - int(self.leave_one_out)
        ks = [k for k in self.ks if k <= available]
        if len(ks) < len(self.ks):
            dropped = ", ".join(str(k) for k in self.ks if k > available)
            notes.append(f"left out k = {dropped}: there are only {available} labelled images to look up")
        if not ks:
            raise DataError(
                f"No k of {list(self.ks)} fits {available} labelled images. Set ks=[1] or add images."
            )
        ranked = knn_classify(
            bank_rows,
            known,
            query_rows,
            ks,
            self.temperature,
            labels.classes,
            self.leave_one_out,
            self.distance,
        )
        return Answers({f"k{k}": ranked[k] for k in ks}, asked, notes=notes)


class KnnProbe:
    """k-NN during training: opened once from labelled sources, run on the weights of the moment.

    Nothing is cached, since the model changes, and no random state of training is drawn from. One process may run it
    alone. The same code as the protocol, so the figures agree.

    Args:
        bank: labelled images to look up.
        queries: labelled images to classify.
        ks: numbers of neighbours; larger ones than the bank's readable images are cut to these.
        workers: processes that decode.
        transform: how an image becomes input; null: the model's size, central crop.

    Raises:
        DataError: without labels, or with one class.
    """

    def __init__(
        self,
        bank: ImageSource,
        queries: ImageSource,
        ks: Sequence[int] = (20,),
        workers: int = 0,
        transform: FeatureTransform | None = None,
    ) -> None:
        self.bank, self.queries = bank, queries
        self.labels = align_labels(bank, queries)
        self.work = Work(workers=workers, progress=False)
        self.config = KnnConfig(ks=tuple(ks), transform=transform or FeatureTransform())
        self.notes: list[str] = []
        """What the last run left out."""

    def run(self, encoder: Encoder) -> dict[str, float]:
        """Shares of right answers in 0..1 (as figures of training are), by `knn_k20_top1` and so on."""
        bank = extract_embeddings(
            encoder, self.bank, self.config.transform, self.config.features.split("+"), self.work
        )
        queries = extract_embeddings(
            encoder, self.queries, self.config.transform, self.config.features.split("+"), self.work
        )
        # Known only here: images that can't be decoded are missing from the bank.
        available = int((np.asarray(self.labels.train)[bank.indices] >= 0).sum())
        fitting = tuple(sorted({max(1, min(k, available)) for k in self.config.ks}))
        config = self.config.model_copy(update={"ks": fitting})
        answers = config.answer(Task(bank, queries, self.labels, encoder.device))
        self.notes = [*answers.notes, *bank.skipped.notes(), *queries.skipped.notes()]
        return {f"knn_{name}": hits.figure() / 100 for name, hits in answers.samples().items()}


def _vote(
    weights: Float[Tensor, "queries k"],
    classes_of: Int64[Tensor, "queries k"],
    ks: Sequence[int],
    classes: int,
) -> Iterator[tuple[int, Int64[Tensor, "queries top"]]]:
    """Rank classes for each k, ascending; each adds only the neighbours that the one before lacked."""
    scores = weights.new_zeros(len(weights), classes, dtype=torch.float64)
    done = 0
    for k in ks:
        scores.scatter_add_(1, classes_of[:, done:k], weights[:, done:k].double())
        done = k
        top = scores.topk(min(TOP, classes), dim=1)
        yield k, torch.where(top.values > 0, top.indices, UNRANKED)
