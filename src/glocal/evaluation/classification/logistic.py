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
from glocal.evaluation.classification.labelled import Answers, LabelledConfig, Task
from glocal.evaluation.classification.labels import labelled_rows, split_held_out
from glocal.evaluation.classification.softmax_regression import (
    Classifier,
    WhitenedRows,
    fit_softmax,
    whiten_rows,
)
from glocal.evaluation.intervals import Samples
from glocal.extraction.feature_matrix import at_least_float32, chunks, release
from glocal.extraction.progress import progress_bar
from glocal.models.encoder import Encoder

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


STEPS = 15
"""Evaluations of loss and gradient that a fit makes on average, begun at the optimum of the last C."""


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

    def figures(self, answers: Answers) -> tuple[dict[str, float], dict[str, Samples]]:
        """Means over the draws of each size, and how far these lie apart."""
        of_draws, numbers, samples = answers.samples(), {}, {}
        for size in dict.fromkeys(row["shots"] for row in answers.rows):
            for name in ("top1", "per_class"):
                drawn = [of_draws[f"{size}_{seed}_{name}"] for seed in range(self.seeds)]
                mean = np.mean([one.values for one in drawn], axis=0)
                samples[f"{size}_{name}"] = drawn[0]._replace(values=mean)
                if name == "top1" and len(drawn) > 1:
                    numbers[f"{size}_top1_std"] = float(np.std([one.figure() for one in drawn], ddof=1))
        return numbers, samples

    def readouts(self, encoder: Encoder) -> list[str]:
        """The one readout asked for, or several joined."""
        return self.features.split("+")

    def operations(self, fitted: int, asked: int, classes: int, width: int) -> float:
        """Whitening, and `STEPS` evaluations a value of C, for every draw."""
        width *= self.features.count("+") + 1
        draws = [(1 if share == 1 else self.seeds) * share * fitted for share in self.shares]
        draws += [self.seeds * shots * classes for shots in self.per_class]
        return 4.0 * sum(draws) * width * (width + STEPS * len(self.strengths) * classes)

    def norm(self) -> str:
        """One number scales all features."""
        return "final norm, divided by the root mean square"

    def answer(self, task: Task) -> Answers:
        """Fit every draw of every size on embeddings, one row a draw."""
        train, test, labels, device, progress = task
        x, y = labelled_rows(train, labels.train, device)
        asked, truth = labelled_rows(test, labels.test, device)
        scale, known = _root_mean_square(x), y.cpu().numpy()
        test_x = at_least_float32(asked) / scale
        rest, held = split_held_out(known, self.held_out, seed=0)
        if len(held) == 0:
            raise DataError(
                "No class of the training images has 2 images, so none can be held out to pick C."
            )
        held = np.sort(np.random.default_rng(0).permutation(held)[:5000])
        judges = torch.from_numpy(held).to(device)
        held_x, held_y = at_least_float32(x[judges]) / scale, y[judges]
        sizes = [(size_name(s, True), s) for s in self.shares]
        sizes += [(size_name(n, False), n) for n in self.per_class]
        ranked: dict[str, Tensor] = {}
        rows: list[dict[str, Any]] = []
        with progress_bar("logistic regression", len(sizes) * self.seeds, progress, unit="fits") as advance:
            for name, shots in sizes:
                # A share of 1 is everything that isn't held out.
                count = shots if name.endswith("per_class") or shots < 1 else len(rest)
                for seed in range(self.seeds):
                    drawn = rest[draw_shots(known[rest], count, seed)]
                    if seed == 0 or len(drawn) < len(rest):  # all images are the same ones for any seed
                        data = whiten_rows(x, y, torch.from_numpy(drawn).to(device), scale)
                        fitted, strength = self._fit(data, held_x, held_y)
                        predicted = fitted.predict(test_x)
                    ranked[f"{name}_{seed}"] = predicted[:, None]
                    top1 = 100.0 * float((predicted == truth).double().mean())
                    row = {
                        "shots": name,
                        "seed": seed,
                        "top1": top1,
                        "strength": strength,
                        "images": len(drawn),
                    }
                    # A line search that can't go lower in float32 has arrived, too; ten times the tolerance allows it.
                    rows.append({**row, "converged": fitted.gradient <= 10 * self.tolerance})
                    advance(1)
        late = sum(not row["converged"] for row in rows)
        limit = 10 * self.tolerance
        slow = [f"{late} of {len(rows)} fits stopped before the gradient fell to {limit:g}"] if late else []
        return Answers(ranked, truth, rows, [*labels.notes, *slow])

    def _fit(
        self, data: WhitenedRows, held_x: Float[Tensor, "held dim"], held_y: Int64[Tensor, " held"]
    ) -> tuple[Classifier, float]:
        """Fit one draw for every C and keep the best on the held-out images; ties go to the stronger penalty."""
        best: tuple[float, float, Classifier] | None = None
        fitted: Classifier | None = None
        for strength in sorted(self.strengths):
            fitted = fit_softmax(data, strength, self.tolerance, self.iterations, start=fitted)
            score = float((fitted.predict(held_x) == held_y).double().mean())
            if best is None or score > best[0]:
                best = (score, strength, fitted)
        assert best is not None
        return best[2], best[1]


def _root_mean_square(matrix: Float[Tensor, "rows dim"]) -> float:
    """Of all values, a portion at a time; never 0."""
    total = 0.0
    for rows in chunks(len(matrix)):
        total += float(matrix[rows].double().square().sum())
        release(matrix[rows])
    return max(math.sqrt(total / matrix.numel()), float(np.finfo(np.float32).tiny))


def size_name(shots: float, share: bool) -> str:
    """Name of a size in the numbers.

    >>> size_name(0.01, True), size_name(5, False)
    ('1_percent', '5_per_class')
    """
    return f"{100 * shots:g}_percent" if share else f"{shots:g}_per_class"
