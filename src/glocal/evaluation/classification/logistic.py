"""Low-shot classification: logistic regression on frozen features with 1 %, 10 % or a few images a class."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from glocal.errors import DataError
from glocal.evaluation.base import DataLike
from glocal.evaluation.classification.labelled import Answers, LabelledConfig, Task
from glocal.evaluation.classification.labels import labelled_rows, split_held_out
from glocal.evaluation.classification.softmax_regression import Classifier, fit_softmax, whiten_rows
from glocal.evaluation.intervals import Samples
from glocal.evaluation.results import Result
from glocal.extraction.feature_matrix import chosen_rows, chunks
from glocal.extraction.progress import progress_bar
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


def draw_shots(labels: Int64[np.ndarray, " images"], shots: float, seed: int) -> Int64[np.ndarray, " chosen"]:
    """Draw images of each class: a share of them where `shots` is below 1, else that many. At least one of each class.

    A smaller draw of the same seed lies within a larger one. A class with fewer images gives all it has.

    >>> len(draw_shots(np.repeat([0, 1], 50), 0.1, seed=0)), len(draw_shots(np.repeat([0, 1], 50), 5, seed=0))
    (10, 10)
    """
    chosen: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        places = np.random.default_rng([seed, int(label)]).permutation(np.flatnonzero(labels == label))
        chosen.append(places[: max(1, round(shots * len(places))) if shots < 1 else int(shots)])
    return np.sort(np.concatenate(chosen))


class LowShot(LabelledConfig):
    """Logistic regression (L-BFGS, L2) on few labelled images, or on all (`shares=[1.0]`), over several draws.

    Features are divided by the root of their mean square over the training images, one number, so that the grid of C
    means the same for every model. C is picked for each draw on held-out training images, which no draw contains: that
    uses more labels than the shots, as DINOv2's logistic protocol does, and never a test image.
    """

    protocol: ClassVar[str] = "logistic"
    version: ClassVar[int] = 2
    shares: tuple[Share, ...] = (0.01, 0.1)
    """Shares of each class's training images."""
    per_class: tuple[Positive, ...] = (1, 5)
    """Images of each class."""
    seeds: Positive = 3
    """Draws of each size; mean and standard deviation over them are reported."""
    strengths: tuple[Annotated[float, Field(gt=0)], ...] = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
    """Values of C, the inverse of the penalty."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training images on which C is picked, at most 5000 images."""
    iterations: Positive = 1000
    """Most steps of L-BFGS."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-5
    """A fit ends when no component of its mean loss's gradient, along whitened features, is larger."""
    features: str = "cls"
    """Readout: cls, mean_patches or gem_patches, with @-2 for the block before the last; joined by +."""

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Embed both splits, then fit every draw of every size; figures are means over the draws.

        Raises:
            DataError: without labels, with one class, or without settings that leave images to fit.
        """
        result = super().run(encoder, data, work)
        sizes = list(dict.fromkeys(row["shots"] for row in result.rows))
        numbers, samples = result.numbers, result.samples
        result.numbers, result.samples = {}, {}
        for size in sizes:
            draws = [f"{size}_{seed}" for seed in range(self.seeds)]
            top1 = np.array([numbers[f"{draw}_top1"] for draw in draws])
            result.numbers[f"{size}_top1"] = float(top1.mean())
            if len(top1) > 1:
                result.numbers[f"{size}_top1_std"] = float(top1.std(ddof=1))
            result.numbers[f"{size}_per_class"] = float(
                np.mean([numbers[f"{draw}_per_class"] for draw in draws])
            )
            for figure in ("top1", "per_class"):
                drawn = [samples[f"{draw}_{figure}"] for draw in draws]
                mean = np.mean([one.values for one in drawn], axis=0)
                result.samples[f"{size}_{figure}"] = Samples(mean, drawn[0].statistic)
        return result

    def readouts(self, encoder: Encoder) -> list[str]:
        """The one readout asked for, or several joined."""
        return self.features.split("+")

    def norm(self) -> str:
        """One number scales all features."""
        return "final norm, divided by the root mean square"

    def answer(self, task: Task) -> Answers:
        """Fit every draw of every size on embeddings, one row a draw."""
        train, test, labels, _, progress = task
        matrix, known = labelled_rows(train, labels.train)
        asked, test_y = (rows.numpy() for rows in labelled_rows(test, labels.test))
        y, scale = known.numpy(), _root_mean_square(matrix)
        test_x = asked.astype(np.float32) / np.float32(scale)
        rest, held = split_held_out(y, self.held_out, seed=0)
        if len(held) == 0:
            raise DataError(
                "No class of the training images has 2 images, so none can be held out to pick C."
            )
        held = np.sort(np.random.default_rng(0).permutation(held)[:5000])
        sizes = [(size_name(s, True), s) for s in self.shares]
        sizes += [(size_name(n, False), n) for n in self.per_class]
        ranked: dict[str, Tensor] = {}
        rows: list[dict[str, Any]] = []
        with progress_bar("logistic regression", len(sizes) * self.seeds, progress, unit="fits") as advance:
            for name, shots in sizes:
                # A share of 1 is everything that isn't held out.
                count = shots if name.endswith("per_class") or shots < 1 else len(rest)
                for seed in range(self.seeds):
                    drawn = rest[draw_shots(y[rest], count, seed)]
                    fitted, strength = self._fit(
                        _scaled(matrix, drawn, scale), y[drawn], _scaled(matrix, held, scale), y[held]
                    )
                    predicted = fitted.predict(test_x)
                    ranked[f"{name}_{seed}"] = torch.from_numpy(predicted)[:, None]
                    # A line search that can't go lower in float32 has arrived, too; ten times the tolerance allows it.
                    row = {"top1": 100.0 * float((predicted == test_y).mean()), "strength": strength}
                    rows.append(
                        {
                            "shots": name,
                            "seed": seed,
                            **row,
                            "images": len(drawn),
                            "converged": fitted.gradient <= 10 * self.tolerance,
                        }
                    )
                    advance(1)
        late = sum(not row["converged"] for row in rows)
        slow = (
            [f"{late} of {len(rows)} fits stopped before the gradient fell to {10 * self.tolerance:g}"]
            if late
            else []
        )
        return Answers(ranked, torch.from_numpy(test_y), rows, [*labels.notes, *slow])

    def _fit(
        self,
        x: Float[np.ndarray, "shots dim"],
        y: Int64[np.ndarray, " shots"],
        held_x: Float[np.ndarray, "held dim"],
        held_y: Int64[np.ndarray, " held"],
    ) -> tuple[Classifier, float]:
        """Fit one draw for every C and keep the best on the held-out images; ties go to the stronger penalty."""
        rows = whiten_rows(x, y)
        best: tuple[float, float, Classifier] | None = None
        for strength in sorted(self.strengths):
            fitted = fit_softmax(rows, strength, self.tolerance, self.iterations)
            score = float((fitted.predict(held_x) == held_y).mean())
            if best is None or score > best[0]:
                best = (score, strength, fitted)
        assert best is not None
        return best[2], best[1]


def _root_mean_square(matrix: Float[Tensor, "rows dim"]) -> float:
    """Of all values, a chunk at a time; never 0."""
    total = sum(float(matrix[rows].double().square().sum()) for rows in chunks(len(matrix)))
    return max(math.sqrt(total / matrix.numel()), float(np.finfo(np.float32).tiny))


def _scaled(
    matrix: Float[Tensor, "rows dim"], places: Int64[np.ndarray, " chosen"], scale: float
) -> Float[np.ndarray, "chosen dim"]:
    """Some rows in float32, divided by one number; mapped where there are many."""
    rows = chosen_rows(matrix, torch.from_numpy(places), torch.float32)
    return rows.div_(scale).numpy()


def size_name(shots: float, share: bool) -> str:
    """Name of a size in the numbers.

    >>> size_name(0.01, True), size_name(5, False)
    ('1_percent', '5_per_class')
    """
    return f"{100 * shots:g}_percent" if share else f"{shots:g}_per_class"
