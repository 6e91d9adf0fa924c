"""The linear probe: all learning rates and choices of layers trained at once, the best picked on held-out images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from glocal.errors import ConfigError, DataError, TrainingError
from glocal.evaluation.base import DataLike
from glocal.evaluation.classification.labelled import TOP, Answers, LabelledConfig, Task
from glocal.evaluation.classification.labels import labelled_rows, split_held_out
from glocal.evaluation.results import Result
from glocal.extraction.feature_matrix import release
from glocal.extraction.image_embeddings import Embeddings
from glocal.extraction.progress import progress_bar
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder

Positive = Annotated[int, Field(ge=1)]

INPUTS: dict[str, tuple[str, ...]] = {
    "cls": ("cls@-1",),
    "cls+mean": ("cls@-1", "mean_patches@-1"),
    "4cls": ("cls@-1", "cls@-2", "cls@-3", "cls@-4"),
    "4cls+mean": ("cls@-1", "cls@-2", "cls@-3", "cls@-4", "mean_patches@-1"),
}
"""Choices of layers: class tokens of the last 1 or 4 blocks, with or without the last block's mean patch."""
InputName = Literal["cls", "cls+mean", "4cls", "4cls+mean"]
EVALUATION_CHUNK = 4096


class Heads(NamedTuple):
    """Linear classifiers on one input, one a learning rate."""

    weight: Float[Tensor, "dim rates*classes"]
    bias: Float[Tensor, " rates*classes"]


def train_heads(
    inputs: Float[Tensor, "rows dim"],
    labels: Int64[Tensor, " rows"],
    num_classes: int,
    learning_rates: Sequence[float],
    *,
    epochs: int,
    batch_size: int,
    momentum: float = 0.9,
    seed: int = 0,
    rows: Int64[Tensor, " chosen"] | None = None,
    columns: Sequence[Sequence[slice]] | None = None,
    progress: bool = False,
) -> list[Heads]:
    """Train linear classifiers by SGD with momentum, cosine to 0, no weight decay, all learning rates side by side.

    Heads share each batch and its order but never a gradient, so each ends as if it had been trained alone. Gradients
    are written out (softmax minus one-hot), which makes a step of the whole grid two matrix products an input: 4 x rows
    x columns x rates x classes operations. All else is 8 % of its time (default grid, ViT-S, 10 classes, one thread).

    >>> train_heads(torch.eye(4), torch.arange(4), 4, [0.1, 1.0], epochs=2, batch_size=2)[0].weight.shape
    torch.Size([4, 8])

    Args:
        inputs: features, as they are.
        labels: classes below `num_classes`.
        num_classes: of each head.
        learning_rates: one head each.
        epochs: passes over the rows.
        batch_size: rows a step; the last, smaller batch of an epoch counts too.
        momentum: of SGD (v <- momentum v + gradient; w <- w - rate v).
        seed: of the weights (normal, std 0.01, as DINO and DINOv2 start) and of the order.
        rows: the rows to train on, by place; null: all. What is read of `inputs` is a batch at a time.
        columns: for each choice of input, the slices of columns it sees; null: one choice, all columns.
        progress: show a bar.

    Returns:
        For each choice its heads, weights with rates outermost.
    """
    choices = columns if columns is not None else [[slice(0, inputs.shape[1])]]
    chosen = torch.arange(len(inputs), device=inputs.device) if rows is None else rows
    # One buffer for all batches: fresh pages for each cost more than the copy (8 MB: 1024 rows of a ViT-S's readouts).
    buffer = inputs.new_empty(min(batch_size, len(chosen)), inputs.shape[1])
    start = buffer.to(torch.promote_types(inputs.dtype, torch.float32))
    rates = start.new_tensor(learning_rates)
    widths = [sum(span.stop - span.start for span in choice) for choice in choices]
    learners = [_Learner(_start(width, num_classes, seed, start), rates, momentum) for width in widths]
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(chosen) // batch_size)
    step = 0
    with progress_bar("linear probe", steps, progress, unit="steps") as advance:
        for _ in range(epochs):
            order = chosen[torch.randperm(len(chosen), generator=generator).to(inputs.device)]
            for places in torch.split(order, batch_size):
                factor = 0.5 * (1 + np.cos(np.pi * step / steps))
                x = torch.index_select(inputs, 0, places, out=buffer[: len(places)]).to(start.dtype)
                y = labels[places]
                for choice, learner in zip(choices, learners, strict=True):
                    learner.step(_columns(x, choice), y, factor)
                step += 1
                advance(1)
                release(inputs)  # of mapped features each row that was read brought a MB along
    return [learner.heads() for learner in learners]


def rank_classes(
    heads: Heads,
    inputs: Float[Tensor, "rows dim"],
    num_classes: int,
    rows: Int64[Tensor, " chosen"] | None = None,
) -> Int64[Tensor, "rates places top"]:
    """The best classes of each row under each head, best first, at most 5; of some rows by place, null: of all."""
    chosen = torch.arange(len(inputs), device=inputs.device) if rows is None else rows
    parts = []
    for places in torch.split(chosen, EVALUATION_CHUNK):
        x = inputs[places].to(heads.weight.dtype)
        logits = torch.addmm(heads.bias, x, heads.weight).view(len(x), -1, num_classes).transpose(0, 1)
        parts.append(logits.topk(min(TOP, num_classes), dim=2).indices)
        release(inputs)
    return torch.cat(parts, dim=1)


class LinearProbe(LabelledConfig):
    """Linear classification of frozen features.

    Choice of layers as DINOv2's (Oquab et al. 2023, sec. 7.1) and its 13 learning rates, which are for a batch of 256
    and scaled linearly. Departures, which make figures a little lower than published ones: the best head is picked on
    held-out training images (published figures pick it on the test images) and features are computed once, without
    augmentation. The picked setting is trained again on all training images before the one look at the test images.
    """

    protocol: ClassVar[str] = "linear"
    version: ClassVar[int] = 2
    inputs: tuple[InputName, ...] = ("cls", "cls+mean", "4cls", "4cls+mean")
    """What the classifier sees of an image; each is fitted."""
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = (
        1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1,
    )  # fmt: skip
    """For a batch of 256."""
    epochs: Positive = 20
    """Passes over the training features."""
    batch_size: Positive = 1024
    """Rows a step. Changes results."""
    least_steps: Positive = 1000
    """More epochs than `epochs` are made where they give fewer steps than this: small sets need them."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of each class's training images on which the setting is picked."""
    seed: int = 0
    """Of the order of images and of the weights."""

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Embed both splits once, train the grid, pick, train the picked setting on everything, test once.

        Raises:
            DataError: without labels, with one class, or with too few images to hold any out.
        """
        fitting, lacking = self._that_fit(encoder)
        result = super(LinearProbe, fitting).run(encoder, data, work)
        result.notes[:0] = lacking
        return result

    def readouts(self, encoder: Encoder) -> list[str]:
        """All that some choice of layers needs."""
        return readouts_for(self.inputs)

    def operations(self, fitted: int, asked: int, classes: int, width: int) -> float:
        """Two products a step for every head of the grid, 4 x rows x columns x rates x classes."""
        columns = width * sum(len(INPUTS[name]) for name in self.inputs)
        return 4.0 * self._epochs(fitted) * fitted * columns * len(self.learning_rates) * classes

    def _epochs(self, rows: int) -> int:
        return max(self.epochs, -(-self.least_steps // -(-rows // self.batch_size)))

    def _that_fit(self, encoder: Encoder) -> tuple[LinearProbe, list[str]]:
        """This probe with the choices that a model of so many blocks can give, and a note on the others."""
        depth = encoder.depth
        least = {name: max(-int(item.rpartition("@")[2]) for item in INPUTS[name]) for name in self.inputs}
        kept = tuple(name for name in self.inputs if depth is None or least[name] <= depth)
        if not kept:
            raise ConfigError(
                f"{encoder.name} has {depth} blocks, too few for {', '.join(self.inputs)}. Set inputs=[cls]."
            )
        if kept == self.inputs:
            return self, []
        gone = ", ".join(name for name in self.inputs if name not in kept)
        return self.model_copy(update={"inputs": kept}), [f"{gone} left out: the model has {depth} blocks"]

    def answer(self, task: Task) -> Answers:
        """Probe embeddings that hold all readouts of `inputs`."""
        train, test, labels, device, progress = task
        x, y = labelled_rows(train, labels.train, device)
        test_x, test_y = labelled_rows(test, labels.test, device)
        fit, held = split_held_out(y.cpu().numpy(), self.held_out, self.seed)
        if len(held) == 0:
            raise DataError(
                "No class of the training images has 2 images, so none can be held out to pick a setting."
            )
        places = {item: place for place, item in enumerate(train.vectors)}
        columns = [_slices([places[item] for item in INPUTS[name]], train) for name in self.inputs]
        scaled = [rate * self.batch_size / 256 for rate in self.learning_rates]
        common = {
            "epochs": self._epochs(len(fit)),
            "batch_size": self.batch_size,
            "momentum": self.momentum,
            "seed": self.seed,
        }
        fit_rows, held_rows = torch.from_numpy(fit).to(device), torch.from_numpy(held).to(device)
        grid = train_heads(
            x,
            y,
            labels.classes,
            scaled,
            rows=fit_rows,
            columns=columns,
            progress=progress,
            **common,  # type: ignore[arg-type]
        )
        rows = self._score(grid, columns, x, y, held_rows, labels.classes)
        best = max(rows, key=lambda row: row["held_out_top1"])
        if not np.isfinite(best["held_out_top1"]):
            raise TrainingError(
                "Every head diverged. Lower learning_rates, or check the features for huge values."
            )
        choice = columns[self.inputs.index(best["input"])]
        rate = best["learning_rate"] * self.batch_size / 256
        final = train_heads(_columns(x, choice), y, labels.classes, [rate], **common)[0]  # type: ignore[arg-type]
        ranked = rank_classes(final, _columns(test_x, choice), labels.classes)[0]
        return Answers({"": ranked}, test_y, rows, [*labels.notes, *self._edge(best)], best)

    def _score(
        self,
        grid: Sequence[Heads],
        columns: Sequence[Sequence[slice]],
        x: Float[Tensor, "rows dim"],
        y: Int64[Tensor, " rows"],
        held: Int64[Tensor, " held"],
        classes: int,
    ) -> list[dict[str, Any]]:
        """Held-out accuracy of every head; a head whose weights diverged has NaN and never wins."""
        rows: list[dict[str, Any]] = []
        truth = y[held]
        for name, heads, choice in zip(self.inputs, grid, columns, strict=True):
            ranked = rank_classes(heads, _columns(x, choice), classes, held)
            finite = heads.weight.isfinite().all(0).view(-1, classes).all(1)
            for rate, ranking, sound in zip(self.learning_rates, ranked, finite.tolist(), strict=True):
                accuracy = 100.0 * (ranking[:, 0] == truth).double().mean().item() if sound else -np.inf
                rows.append({"input": name, "learning_rate": rate, "held_out_top1": accuracy})
        return rows

    def _edge(self, best: Mapping[str, Any]) -> list[str]:
        if best["learning_rate"] != max(self.learning_rates) or len(self.learning_rates) == 1:
            return []
        return [
            f"the largest learning rate of the grid, {best['learning_rate']:g}, won; a larger one may do better"
        ]


def readouts_for(inputs: Sequence[InputName]) -> list[str]:
    """All readouts of some choices, the mean patch first: then every choice is one run of columns, a view."""
    needed = dict.fromkeys(item for name in inputs for item in INPUTS[name])
    return sorted(needed, key=lambda item: (not item.startswith("mean"), int(item.rpartition("-")[2])))


def _start(dim: int, classes: int, seed: int, like: Tensor) -> Float[Tensor, "classes dim"]:
    """What every head of a choice starts from, so that only the rate tells them apart."""
    generator = torch.Generator().manual_seed(seed + 1)
    return (torch.randn(dim, classes, generator=generator) * 0.01).to(like).T


class _Learner:
    """The heads of one choice while they learn.

    Weights are held as (rates*classes, dim) and logits as (rates, classes, batch): a softmax over classes then runs
    along rows that lie side by side, 20 times as fast as over 10 classes that do, and thin products (one rate, few
    classes) 5 times. The rate is folded into the velocity u = rate v, by scaling the error, the smallest tensor there
    is: u <- momentum u + rate gradient; w <- w - factor u.
    """

    def __init__(
        self, start: Float[Tensor, "classes dim"], rates: Float[Tensor, " rates"], momentum: float
    ) -> None:
        self.classes, self.momentum, self.rates = len(start), momentum, rates[:, None, None]
        self.weight = start.repeat(len(rates), 1)
        self.bias = start.new_zeros(len(self.weight), 1)
        self.weight_velocity, self.bias_velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    def step(self, x: Float[Tensor, "batch dim"], labels: Int64[Tensor, " batch"], factor: float) -> None:
        """Descend the mean cross-entropy of one batch by `factor` times each head's rate."""
        error = (
            torch.addmm(self.bias, self.weight, x.T).view(len(self.rates), self.classes, len(x)).softmax(1)
        )
        places = labels.expand(len(self.rates), 1, -1)
        error.scatter_add_(1, places, error.new_full((1, 1, 1), -1.0).expand_as(places))
        gradient = error.mul_(self.rates / len(x)).flatten(0, 1)
        self.weight_velocity.addmm_(gradient, x, beta=self.momentum)
        self.bias_velocity.mul_(self.momentum).add_(gradient.sum(1, keepdim=True))
        self.weight.sub_(self.weight_velocity, alpha=factor)
        self.bias.sub_(self.bias_velocity, alpha=factor)

    def heads(self) -> Heads:
        """What was learnt, as views."""
        return Heads(self.weight.T, self.bias.flatten())


def _slices(places: Sequence[int], embeddings: Embeddings) -> list[slice]:
    """Columns of some readouts within all of them side by side; adjacent ones are joined: such a choice is a view."""
    ends: NDArray[np.int64] = np.cumsum([v.shape[1] for v in embeddings.vectors.values()])
    slices: list[slice] = []
    for place in sorted(places):
        start, stop = int(ends[place - 1]) if place else 0, int(ends[place])
        if slices and slices[-1].stop == start:
            slices[-1] = slice(slices[-1].start, stop)
        else:
            slices.append(slice(start, stop))
    return slices


def _columns(x: Float[Tensor, "rows dim"], choice: Sequence[slice]) -> Float[Tensor, "rows chosen"]:
    return x[:, choice[0]] if len(choice) == 1 else torch.cat([x[:, c] for c in choice], dim=1)
