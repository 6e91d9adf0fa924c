"""One score of a run without labels, by a rule fixed in advance.

The score is the geometric mean of three shares, in per cent: how many held-out images are found again by a distorted crop
of theirs (the class embedding), how many patches find the patch that shows the same place (patch embeddings), and how much
of its dimensions the class embedding uses (effective rank). A model that is good at one and useless at another gets little;
a collapse shows in all. It compares checkpoints of one run, and runs of one width on the same data at the same resolution;
it does not compare data sets. What it is worth is measured by `benchmarks/verdict_study.py` and told in docs/verdict.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

STANDS_STILL = 0.5
"""Points of score that count as an improvement."""


def score(figures: Mapping[str, float]) -> float:
    """0..100, from `retrieval`, `correspondence` and `rank_share` in per cent.

    >>> round(score({"retrieval": 50.0, "correspondence": 10.0, "rank_share": 16.0}), 6)
    20.0
    """
    return math.prod(max(0.0, figures[name]) for name in ("retrieval", "correspondence", "rank_share")) ** (
        1 / 3
    )


def best_step(scores: Sequence[tuple[int, float]]) -> int | None:
    """The step of the highest score, the earliest of equal ones; null without any that is a number.

    >>> best_step([(0, 10.0), (50, 30.0), (100, 29.0)])
    50
    """
    finite = [(step, value) for step, value in scores if math.isfinite(value)]
    return max(finite, key=lambda entry: (entry[1], -entry[0]))[0] if finite else None


def stands_still(scores: Sequence[tuple[int, float]], planned: int) -> bool:
    """Whether the run may end: past half of its planned steps, no gain of half a point over the last quarter of them.

    Args:
        scores: (step, score) in order.
        planned: steps the run was meant to take.
    """
    if not scores or scores[-1][0] < planned / 2:
        return False
    border = scores[-1][0] - planned / 4
    before = [value for step, value in scores if step <= border and math.isfinite(value)]
    since = [value for step, value in scores if step > border and math.isfinite(value)]
    return bool(before) and max(since, default=-math.inf) < max(before) + STANDS_STILL
