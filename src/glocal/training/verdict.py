"""The label-free examination inside a run: when, what is written, which weights are kept as the best, when to end."""

from __future__ import annotations

from pathlib import Path

import torch

from glocal.models.backbone import Backbone
from glocal.models.encoder import Encoder
from glocal.training.metrics_log import read_records
from glocal.training.run import Run
from glocal.training.weights import as_encoder, export_teacher, view_side
from glocal.verdict.examination import Examination, period, prepare
from glocal.verdict.score import best_step, stands_still

OVERFITTING_EVERY = 4
"""Examinations between looks at training images: they double an examination's cost."""


class RunVerdict:
    """Examines the teacher at its period and keeps the weights of the highest score in `export/best`.

    The scores of a continued run are read from its records, so that it keeps the same best as one never stopped.
    """

    def __init__(self, run: Run) -> None:
        config = run.config
        self._config, self._folder = config, run.folder
        self.steps = run.steps
        """Steps of the run as planned; a run by the clock plans them anew."""
        self._examination: Examination = prepare(config.verdict, config.data, run.source, view_side(config))
        cost = self._examination.flops(self._encoder(run.model.teacher.backbone))
        self._period = period(config.verdict, cost, run.cost.flops, run.steps)
        self._scores = recorded_scores(run.folder.metrics)
        self.finished = False
        """Whether `training.stop=auto` ends the run here."""

    def due(self, step: int) -> bool:
        """Whether this step is examined: the first, the last, and those at the period."""
        return step == self.steps or step % self._period == 0

    def look(self, backbone: Backbone, step: int) -> dict[str, float]:
        """Figures as `verdict.*`; the weights are exported when no score was higher."""
        number = step // self._period
        slow = step == self.steps or number % OVERFITTING_EVERY == 0
        with torch.random.fork_rng(devices=[]):
            figures = self._examination.figures(self._encoder(backbone), overfitting=slow)
        self._scores.append((step, figures["score"]))
        self.finished = self._config.training.stop == "auto" and stands_still(self._scores, self.steps)
        if best_step(self._scores) == step:
            best = self._folder.export / "best"
            export_teacher(best, backbone, self._config, step, self._folder.read_origin())
        return {f"verdict.{name}": value for name, value in figures.items()}

    def _encoder(self, backbone: Backbone) -> Encoder:
        """The backbone in the run's own precision: float32 costs up to twice as much beside bfloat16 steps."""
        encoder = as_encoder(self._config, backbone)
        encoder.precision = "bfloat16" if self._config.speed.precision == "bf16" else "float32"
        return encoder

    def go_back(self) -> None:
        """Forget the scores that `metrics.jsonl` no longer holds, after the run was put back to an earlier step.

        `export/best` stays until a step of the new way scores highest; its config.json says of which step it is.
        """
        self._scores = recorded_scores(self._folder.metrics)


def recorded_scores(metrics: Path) -> list[tuple[int, float]]:
    """(step, score) of every examination that `metrics.jsonl` holds."""
    return [
        (r["step"], r["verdict.score"]) for r in read_records(metrics) if r.get("verdict.score") is not None
    ]
