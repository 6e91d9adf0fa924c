"""Telling a person in plain words that training has collapsed, and what to change.

A self-distillation loss can't be read alone: it is flat at ln K when nothing is learnt any more and low when everything
is mapped to one answer. The teacher's targets and the rank of its embeddings tell these apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Kind = Literal["uniform", "constant", "same"]

# Shares of ln K. Healthy runs of 160 recorded steps (benchmarks/results-2026-11-21-collapse.jsonl) had target entropies of
# at most 0.93 and marginal ones of at least 0.46; both collapses were beyond the borders within 30 steps of their start.
UNIFORM_ENTROPY = 0.98
EARLY_UNIFORM = 0.995
"""While the rate warms up: random features of large models, centred, come near to uniform before they tell images apart."""
CONSTANT_MARGINAL = 0.2
EARLIEST, WARM = 0.01, 0.1
"""Shares of the run before which nothing is said, and up to which early signs must be clearer."""
SAME_TARGET = 0.01
"""Marginal entropy less target entropy: what a target tells of its image. Below this, all images get the same target."""
RANK_KEPT = 0.5
"""Of the highest effective rank seen. Early targets tell little as well, but then the rank has not fallen."""
PATIENCE = 3


class Collapse(NamedTuple):
    """A term that has collapsed, how, and the sentence for people."""

    term: str
    kind: Kind
    text: str


class CollapseMonitor:
    """Looks at every record's `*.target_entropy`, `*.marginal_entropy` and `effective_rank`, and says once what it sees."""

    def __init__(self) -> None:
        self._streak: dict[tuple[str, Kind], int] = {}
        self._said: set[tuple[str, Kind]] = set()
        self._highest_rank = 0.0

    def look(self, record: Mapping[str, float], share: float) -> list[Collapse]:
        """Return the collapses that this record, at a share of the run, shows for the third time in a row at least."""
        rank = record.get("effective_rank", self._highest_rank)
        self._highest_rank = max(self._highest_rank, rank)
        collapses = []
        for key, target in record.items():
            term, _, statistic = key.rpartition(".")
            if statistic != "target_entropy":
                continue
            marginal = record.get(f"{term}.marginal_entropy", 1.0)
            for kind, seen in _signs(target, marginal, rank / max(self._highest_rank, 1e-12), share).items():
                streak = self._streak.get((term, kind), 0) + 1 if seen else 0
                self._streak[term, kind] = streak
                if streak >= PATIENCE and share >= EARLIEST and (term, kind) not in self._said:
                    self._said.add((term, kind))
                    collapses.append(Collapse(term, kind, _explain(term, kind, target, marginal, rank)))
        return collapses


def _signs(target: float, marginal: float, rank_kept: float, share: float) -> dict[Kind, bool]:
    uniform = target > (UNIFORM_ENTROPY if share > WARM else EARLY_UNIFORM)
    constant = marginal < CONSTANT_MARGINAL
    same = share > WARM and marginal - target < SAME_TARGET and rank_kept < RANK_KEPT
    return {"uniform": uniform, "constant": constant, "same": same and not uniform and not constant}


def _explain(term: str, kind: Kind, target: float, marginal: float, rank: float) -> str:
    sinkhorn = f"objectives.{term}.centring.method=sinkhorn"
    if kind == "uniform":
        return (
            f"'{term}' has collapsed to uniform: the teacher's targets have {target:.1%} of the largest possible entropy, "
            f"so there is nothing to learn from them and the loss rests at ln(prototypes). Lower objectives.{term}."
            f"teacher_temperature or teacher.momentum, use fewer prototypes, or set {sinkhorn}."
        )
    if kind == "constant":
        return (
            f"'{term}' has collapsed to a constant: all images get one target (entropy of the mean target {marginal:.1%} of "
            f"the largest). Set {sinkhorn}, raise teacher_temperature, or lower the learning rate."
        )
    return (
        f"'{term}' has collapsed: every image gets the same target (target entropy {target:.1%} of the largest, that of the "
        f"mean target {marginal:.1%}) and the effective rank of the embeddings fell to {rank:.1f}. Set {sinkhorn}, lower "
        f"optimiser.learning_rate, or lower objectives.{term}.teacher_temperature."
    )
