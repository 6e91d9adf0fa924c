"""What stands for a label in a file, numbered: texts and numbers, of which some may be missing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64

UNLABELLED = -1
"""The number of an image without a label."""
MOST_CLASSES = 100_000
"""Whole numbers below this count classes from 0 and are taken as they are. Larger ones are identifiers, numbered in
their order: a classifier as wide as the largest would take gigabytes."""
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")

Labels: TypeAlias = "tuple[Int64[np.ndarray, ' images'] | None, list[str] | None]"


def number_texts(texts: Sequence[str | None], names: Sequence[str] | None = None) -> Labels:
    """Labels and class names from what is written: whole numbers as such, else names in alphabetical order.

    None and an empty text are no label. With `names` given, texts are looked up in these.

    >>> number_texts(["rose", "daisy", ""])
    (array([ 1,  0, -1]), ['daisy', 'rose'])
    """
    if names is None and all(not text or _WHOLE.fullmatch(text) for text in texts):
        return number_wholes(np.array([int(text) if text else UNLABELLED for text in texts], dtype=np.int64))
    classes = sorted({text for text in texts if text}) if names is None else list(names)
    number = {name: place for place, name in enumerate(classes)}
    return np.array([number[text] if text else UNLABELLED for text in texts], dtype=np.int64), classes


def number_wholes(values: Int64[np.ndarray, " images"], names: Sequence[str] | None = None) -> Labels:
    """Labels from whole numbers; negative ones are no label, and with none left there are no labels at all.

    `names` are used where there is one for every number.
    """
    labels = np.where(values < 0, UNLABELLED, values)
    largest = int(labels.max(initial=UNLABELLED))
    if largest < 0:
        return None, None
    if largest >= MOST_CLASSES:
        kept = np.unique(labels[labels >= 0])
        return np.where(labels >= 0, np.searchsorted(kept, labels), UNLABELLED), [
            str(n) for n in kept.tolist()
        ]
    return labels, [str(name) for name in names] if names is not None and largest < len(names) else None
