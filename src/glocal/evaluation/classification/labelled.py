"""What every protocol with labels shares: open two splits, embed them, let the protocol answer, count its answers."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from glocal.data.source import ImageSource
from glocal.evaluation.base import DataLike, ProtocolConfig
from glocal.evaluation.classification.labels import LabelPair, align_labels, open_labelled
from glocal.evaluation.intervals import Samples
from glocal.evaluation.results import Result
from glocal.extraction.image_embeddings import Embeddings, extract_embeddings, features_gib, images_to_embed
from glocal.extraction.plan import tell_plan
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.models.preprocessing import FeatureTransform

TOP = 5
"""Classes ranked per image."""


@dataclass
class Answers:
    """What a classifier says of the labelled test images, and how it came to it."""

    ranked: dict[str, Int64[Tensor, "images top"]]
    """The best classes of each image, best first, by the name of what answered ('' where there is one; 'k20')."""
    truth: Int64[Tensor, " images"]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    picked: dict[str, Any] = field(default_factory=dict)

    def samples(self) -> dict[str, Samples]:
        """Top-1, top-5 where so many are ranked, and mean per-class accuracy in per cent, for everything that answered."""
        truth, made = self.truth.cpu().numpy(), {}
        for prefix, ranked in self.ranked.items():
            lead = f"{prefix}_" if prefix else ""
            hits = 100.0 * (ranked.cpu().numpy() == truth[:, None])
            made[f"{lead}top1"] = Samples(hits[:, :1])
            if hits.shape[1] >= TOP:
                made[f"{lead}top5"] = Samples(hits.max(1, keepdims=True))
            made[f"{lead}per_class"] = Samples(np.stack([hits[:, 0], truth], 1), "class_mean")
        return made

    def predictions(self, places: Int64[np.ndarray, " images"]) -> dict[str, Int64[np.ndarray, " images"]]:
        """Places, true classes and what each classifier says."""
        said = {name or "predicted": ranked[:, 0].cpu().numpy() for name, ranked in self.ranked.items()}
        return {"place": places, "truth": self.truth.cpu().numpy(), **said}


class Task(NamedTuple):
    """What a protocol with labels is to answer."""

    train: Embeddings
    test: Embeddings
    labels: LabelPair
    """Of all images of both, in one numbering."""
    device: torch.device
    progress: bool = False


class LabelledConfig(ProtocolConfig):
    """A protocol on embeddings of two labelled splits. A subclass says which readouts it needs and answers."""

    transform: FeatureTransform = FeatureTransform()

    @abstractmethod
    def readouts(self, encoder: Encoder) -> list[str]:
        """The vectors of an image that are put side by side."""

    @abstractmethod
    def answer(self, task: Task) -> Answers:
        """Fit on the training embeddings and classify the test images."""

    def figures(self, answers: Answers) -> tuple[dict[str, float], dict[str, Samples]]:
        """What to report of the answers: figures made of items, and others."""
        return {}, answers.samples()

    def operations(self, fitted: int, asked: int, classes: int, width: int) -> float:
        """Floating-point operations of `answer`, roughly, on embeddings of so many images; for the plan."""
        return 0.0

    def norm(self) -> str:
        """How features are scaled, in words."""
        return "final norm"

    def open(self, data: DataLike) -> tuple[ImageSource, ImageSource, list[str]]:
        """The images to learn from, those to be classified, and notes."""
        return open_labelled(data)

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Embed both splits once, learn, and answer for the test images once.

        Raises:
            DataError: without labels, with one class, or with too few images.
        """
        train, test, told = self.open(data)
        labels, what = align_labels(train, test), self.readouts(encoder)
        self._tell_plan(encoder, [train] if test is train else [train, test], labels.classes, what, work)
        embed = functools.partial(extract_embeddings, encoder, allow_half=True)
        fitted = embed(train, self.transform, what, work)
        tested = fitted if test is train else embed(test, self.transform, what, work)
        answers = self.answer(Task(fitted, tested, labels, encoder.device, work.progress))
        transform = self.transform.resolve(encoder)
        left_out = [*fitted.notes(), *(tested.notes() if tested is not fitted else [])]
        numbers, samples = self.figures(answers)
        return self.result(
            encoder,
            {"train": train} if test is train else {"train": train, "test": test},
            numbers,
            rows=answers.rows,
            notes=[*told, *answers.notes, *left_out],
            picked=answers.picked,
            samples=samples,
            predictions=answers.predictions(tested.indices[labels.test[tested.indices] >= 0]),
            transform=transform.model_dump(),
            resolution=transform.size,
            layer=", ".join(what),
            norm=self.norm(),
        )

    def _tell_plan(
        self, encoder: Encoder, sources: Sequence[ImageSource], classes: int, what: Sequence[str], work: Work
    ) -> None:
        train, test = sources[0], sources[-1]
        width = encoder.embed_dim
        to_embed = (images_to_embed(encoder, each, self.transform, what, work.cache) for each in sources)
        tell_plan(
            self.protocol,
            encoder,
            train,
            self.transform,
            work.workers,
            images=sum(to_embed),
            gib=sum(features_gib(len(each), len(what) * width, True) for each in sources),
            operations=self.operations(len(train), len(test), classes, width),
        )


def confusion(
    predictions: Mapping[str, np.ndarray], name: str = "predicted"
) -> Int64[np.ndarray, "classes classes"]:
    """Test images by (true class, predicted class), from `Result.predictions` or what `read_items` gives.

    >>> confusion({"truth": np.array([0, 1, 1]), "predicted": np.array([0, 0, 1])}).tolist()
    [[1, 0], [1, 1]]
    """
    truth, predicted = predictions["truth"], predictions[name]
    classes = 1 + int(max(truth.max(), predicted.max()))
    known = predicted >= 0
    counts = np.bincount(truth[known] * classes + predicted[known], minlength=classes * classes)
    return np.asarray(counts.reshape(classes, classes))
