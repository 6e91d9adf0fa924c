"""Labels of two sources brought to one numbering, and the checks without which an accuracy would be silently wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from glocal.data.labels import number_wholes
from glocal.data.open import splits_of
from glocal.data.source import ImageSource
from glocal.data.splits import read_spec
from glocal.errors import DataError
from glocal.evaluation.base import DataLike, open_split
from glocal.extraction.feature_matrix import chosen_rows
from glocal.extraction.image_embeddings import Embeddings

HELD_OUT = 0.2
"""Share of each class that is tested where data has no splits."""
UNLABELLED = -1
"""Label of an image without one, or of a class that training images lack by name."""


@dataclass
class LabelPair:
    """Labels of every image of two sources, in one numbering."""

    train: Int64[np.ndarray, " train_images"]
    test: Int64[np.ndarray, " test_images"]
    classes: int
    """Labels are below this."""
    notes: list[str] = field(default_factory=list)


def align_labels(train: ImageSource, test: ImageSource) -> LabelPair:
    """Bring labels of two sources to the first one's numbering, matching classes by name when both have names.

    A folder source numbers the classes it sees, so a test folder that lacks one class has other numbers. A test class
    that training lacks keeps a number of its own: its images count as wrong, and a note says how many they are.

    Raises:
        DataError: without labels, or with a single class in the training images.
    """
    (known, names), (asked, asked_names) = _numbered(train), _numbered(test)
    if (names is None) != (asked_names is None) and train.class_names is None and test.class_names is None:
        # One's numbers were too large to count up to: both are matched by what the numbers say.
        names = names or [str(number) for number in range(1 + int(known.max(initial=-1)))]
        asked_names = asked_names or [str(number) for number in range(1 + int(asked.max(initial=-1)))]
    classes = 1 + int(known.max(initial=-1))
    if names is not None:
        classes = max(classes, len(names))
    if names is not None and asked_names is not None and names != asked_names:
        number = {name: place for place, name in enumerate(names)}
        table = np.array([number.setdefault(name, len(number)) for name in asked_names], np.int64)
        asked = np.where(asked >= 0, table[np.maximum(asked, 0)], UNLABELLED)
        classes = max(classes, len(number))
        names = list(number)
    classes = max(classes, 1 + int(asked.max(initial=-1)))
    present = np.unique(known[known >= 0])
    if len(present) < 2:
        raise DataError(
            f"{train.name} has {len(present)} class{'es' * (len(present) != 1)} with images; a classifier needs 2. "
            "Labels come from sub-folders or from the label column; check the path."
        )
    return LabelPair(known, asked, classes, _notes(train, test, known, asked, names))


def _numbered(source: ImageSource) -> tuple[NDArray[np.int64], list[str] | None]:
    """A source's labels and class names; numbers too large to count up to are replaced, and become names."""
    labels = labels_of(source)
    if source.class_names is not None:
        return labels, source.class_names
    numbered, names = number_wholes(labels)
    return labels if numbered is None else numbered, names


def labels_of(source: ImageSource) -> NDArray[np.int64]:
    """A source's labels.

    Raises:
        DataError: when it has none.
    """
    if source.labels is None or not (np.asarray(source.labels) >= 0).any():
        raise DataError(
            f"{source.name} has no labels, and this protocol needs them. Use one sub-folder per class or a label "
            "column; the protocols 'statistics' and 'correspondence' need no labels."
        )
    return np.asarray(source.labels, np.int64)


def labelled_rows(
    embeddings: Embeddings, labels: Int64[np.ndarray, " images"], device: torch.device | None = None
) -> tuple[Float[Tensor, "rows dim"], Int64[Tensor, " rows"]]:
    """All readouts side by side, for the readable images that have a label, and their classes.

    Raises:
        DataError: when none has.
    """
    classes = torch.from_numpy(np.asarray(labels)[embeddings.indices])
    kept = classes >= 0
    if not bool(kept.any()):
        raise DataError("None of the readable images has a label.")
    vectors = list(embeddings.vectors.values())
    rows = vectors[0] if len(vectors) == 1 else embeddings.side_by_side
    rows = torch.cat(vectors, dim=1) if rows is None else rows
    if not bool(kept.all()):
        rows = chosen_rows(rows, kept.nonzero()[:, 0])
    return rows.to(device), classes[kept].to(device)


def open_labelled(data: DataLike) -> tuple[ImageSource, ImageSource, list[str]]:
    """The images to learn from, those to be classified, and notes on how they were come by.

    A test split without labels (ImageNet's) is passed over for `val`. Data without splits is divided: a fifth of every
    class, drawn once, is test.

    Raises:
        DataError: when there are splits but none to learn from or to test on.
    """
    if isinstance(data, str | Path) and read_spec(str(data)).split is None and not splits_of(data):
        source = open_split(data, "all")
        fitted, held = split_held_out(labels_of(source), HELD_OUT, seed=0)
        train, test = source.subset(fitted), source.subset(held)
        train.split, test.split = "4 of 5", "1 of 5"
        return (
            train,
            test,
            [f"{source.name} has no splits: a fifth of every class, drawn by seed 0, was tested"],
        )
    train, test = open_split(data, "train"), open_split(data, "test", "val")
    if test.labels is None and "val" in (data if isinstance(data, Mapping) else splits_of(data)):
        return train, open_split(data, "val"), [f"{test.name} has no labels: val was tested"]
    return train, test, []


def split_held_out(
    labels: Int64[np.ndarray, " images"], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide places into (fitted, held out), class by class: at least one held out of every class with two images.

    >>> [len(part) for part in split_held_out(np.repeat([0, 1], 10), 0.1, seed=0)]
    [18, 2]
    """
    generator = np.random.default_rng(seed)
    held: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(share * len(places))), len(places) - 1)
        held.append(places[:count])
    held_out = np.sort(np.concatenate(held)) if held else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def _notes(
    train: ImageSource,
    test: ImageSource,
    known: NDArray[np.int64],
    asked: NDArray[np.int64],
    names: list[str] | None,
) -> list[str]:
    notes: list[str] = []
    for source, labels in ((train, known), (test, asked)):
        missing = int((labels < 0).sum())
        if missing:
            notes.append(f"{source.name}: left out {missing} image{'s' * (missing != 1)} without a label")
    trained, tested = np.unique(known[known >= 0]), np.unique(asked[asked >= 0])
    absent = np.setdiff1d(trained, tested)
    if len(absent):
        notes.append(f"{test.name} lacks {len(absent)} of {len(trained)} classes: {_named(absent, names)}")
    unknown = np.setdiff1d(tested, trained)
    if len(unknown):
        count = int(np.isin(asked, unknown).sum())
        lacking = f"{train.name} lacks classes of {test.name}: {_named(unknown, names)}"
        notes.append(f"{lacking}; {count} images count as wrong")
    return notes


def _named(labels: NDArray[np.int64], names: list[str] | None) -> str:
    told = [names[i] if names is not None and i < len(names) else str(i) for i in labels[:10].tolist()]
    return ", ".join(told) + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")
