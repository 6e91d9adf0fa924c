"""Telling a person in plain words when training goes wrong, and what to change.

A self-distillation loss can't be read alone: it is flat at ln K when nothing is learnt any more and low when everything
is mapped to one answer. The teacher's targets tell both apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from glocal.errors import TrainingError

# Shares of ln K. A healthy run sits between; the first steps of every run start near uniform, hence the patience.
UNIFORM_ENTROPY = 0.98
CONSTANT_MARGINAL = 0.05
PATIENCE = 3


class CollapseMonitor:
    """Looks at every record's `*.target_entropy` and `*.marginal_entropy` and says once what it sees."""

    def __init__(self) -> None:
        self._streak: dict[tuple[str, str], int] = {}
        self._said: set[tuple[str, str]] = set()

    def look(self, record: Mapping[str, float], warm: bool) -> list[str]:
        """Return the warnings that this record gives rise to; none before `warm` (the learning-rate warm-up is over)."""
        messages = []
        for key, value in record.items():
            name, _, statistic = key.rpartition(".")
            if statistic == "target_entropy":
                marginal = record.get(f"{name}.marginal_entropy", 1.0)
                for kind, seen in (
                    ("uniform", value > UNIFORM_ENTROPY),
                    ("constant", marginal < CONSTANT_MARGINAL),
                ):
                    streak = self._streak.get((name, kind), 0) + 1 if seen and warm else 0
                    self._streak[name, kind] = streak
                    if streak >= PATIENCE and (name, kind) not in self._said:
                        self._said.add((name, kind))
                        messages.append(_explain(name, kind, value, marginal))
        return messages


def _explain(name: str, kind: str, entropy: float, marginal: float) -> str:
    if kind == "uniform":
        return (
            f"'{name}' has collapsed to uniform: the teacher's targets have {entropy:.1%} of the largest possible entropy, "
            f"so there is nothing to learn from them and the loss rests at ln(prototypes). Lower objectives.{name}."
            f"teacher_temperature or teacher.momentum, use fewer prototypes, or set objectives.{name}.centring.method=sinkhorn."
        )
    return (
        f"'{name}' has collapsed to a constant: all images get one target (entropy of the mean target {marginal:.1%} of the "
        f"largest). Set objectives.{name}.centring.method=sinkhorn, raise teacher_temperature, or lower the learning rate."
    )


def check_finite(loss: float, step: int) -> None:
    """Stop a run whose loss is no number, before anything of it is saved.

    Raises:
        TrainingError: naming the step and what helps.
    """
    if not math.isfinite(loss):
        raise TrainingError(
            f"The loss became {loss} at or before step {step}. The last checkpoint, from before, is kept: continue with "
            "resume=true and optimiser.learning_rate= at a half, optimiser.clip= smaller, or speed.precision=fp32."
        )
