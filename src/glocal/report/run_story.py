"""What a run's own files tell: its verdict, its figures over the steps, and what it ran on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from glocal.config import to_yaml
from glocal.training.config import RunConfig
from glocal.training.metrics_log import read_records
from glocal.training.run_folder import read_run_config
from glocal.verdict.diagnosis import Diagnosis, diagnose, latest

POINTS = 400
"""Points a line shows at most; evenly thinned, the last one kept."""

# Title, unit, and the records' names in order of importance; a name that ends in * stands for all that end so.
CHARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Score without labels", "0 to 100", ("verdict.score", "verdict.retrieval", "verdict.correspondence")),
    ("Loss", "weighted sum of terms", ("loss",)),
    ("Terms of the loss", "each before its weight", ()),
    ("With labels", "watched, never trained on", ("*top1", "*mIoU", "*accuracy")),
    ("Effective rank", "directions in use", ("effective_rank", "verdict.rank", "verdict.patch_rank")),
    ("Teacher's targets", "share of ln K", ("*.target_entropy", "*.marginal_entropy")),
    ("Images a second", "", ("images_per_second",)),
    ("Learning rate", "", ("learning_rate",)),
    ("Gradient norm", "before clipping", ("gradient_norm",)),
    ("Learnt by heart", "points of retrieval, training over held-out images", ("verdict.overfitting",)),
    ("Position in patches", "share of variance", ("verdict.position_share", "verdict.high_norm_share")),
)


class RunStory(NamedTuple):
    """A run as its files tell it."""

    config: RunConfig
    records: list[dict[str, Any]]
    planned: int
    diagnosis: Diagnosis

    @property
    def done(self) -> int:
        """Steps taken."""
        return max((record["step"] for record in self.records), default=0)

    def to_json(self) -> dict[str, Any]:
        """Verdict, cards, charts and settings, as the page reads them."""
        diagnosis = self.diagnosis
        return {
            "verdict": {
                "status": diagnosis.status,
                "sentence": diagnosis.sentence,
                "findings": [finding._asdict() for finding in diagnosis.findings],
                "best": diagnosis.best,
            },
            "cards": cards(self),
            "charts": charts(self.records, list(self.config.objectives)),
            "settings": to_yaml(self.config),
            "progress": min(1.0, self.done / self.planned),
        }


def read_story(folder: Path) -> RunStory:
    """Read a run folder.

    Raises:
        TrainingError: when there is no run in it.
    """
    config = read_run_config(folder)
    records = read_records(folder / "metrics.jsonl")
    planned = planned_steps(config, records)
    return RunStory(config, records, planned, diagnose(records, planned))


def planned_steps(config: RunConfig, records: Sequence[Mapping[str, Any]]) -> int:
    """Steps that the run is meant to take, as its examinations note it: budgets of minutes change it on the way."""
    planned = latest(records, "planned_steps")
    taken = max((record["step"] for record in records), default=0)
    return int(planned or config.training.steps or max(1, taken))


def cards(story: RunStory) -> list[dict[str, str]]:
    """The few figures that everybody asks for, largest first."""
    records, config = story.records, story.config
    shown = [
        ("recipe", config.recipe, config.data),
        ("steps", f"{story.done:,}", f"of {story.planned:,} planned"),
    ]
    for label, name, unit in (
        ("score", "verdict.score", "of 100, without labels"),
        ("crops that find their image", "verdict.retrieval", "per cent"),
        ("patches that find their place", "verdict.correspondence", "per cent"),
    ):
        value = latest(records, name)
        if value is not None and math.isfinite(value):
            start = next(r[name] for r in records if r.get(name) is not None)
            shown.append((label, f"{value:.1f}", f"{unit}; {start:.1f} before training"))
    knn = next((name for r in records for name in r if name.endswith("top1")), None)
    if knn is not None:
        value = latest(records, knn) or 0.0
        shown.append(("k-NN", f"{value if value > 1 else 100 * value:.1f} %", knn))
    speed = [r["images_per_second"] for r in records if r.get("images_per_second")]
    if speed:
        shown.append(("images a second", f"{sorted(speed)[len(speed) // 2]:,.0f}", "median"))
    return [{"label": label, "value": value, "note": note} for label, value, note in shown]


def charts(records: Sequence[Mapping[str, Any]], terms: Sequence[str]) -> list[dict[str, Any]]:
    """Every chart that has two points or more; a line is a name and [step, value] points."""
    names = list(dict.fromkeys(name for record in records for name in record))
    drawn = []
    for title, unit, wanted in CHARTS:
        chosen = [n for pattern in wanted or terms for n in names if _fits(n, pattern)]
        lines = [{"name": n.removeprefix("verdict."), "points": _points(records, n)} for n in chosen]
        lines = [line for line in lines if len(line["points"]) > 1]
        if lines:
            drawn.append({"title": title, "unit": unit, "lines": lines})
    return drawn


def _fits(name: str, pattern: str) -> bool:
    return (
        name.endswith(pattern[1:]) and not name.startswith("verdict.")
        if pattern[0] == "*"
        else name == pattern
    )


def _points(records: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    points = [
        [r["step"], float(f"{r[name]:.5g}")]
        for r in records
        if isinstance(r.get(name), int | float) and math.isfinite(r[name])
    ]
    every = max(1, len(points) // POINTS)
    return points[:-1][::every] + points[-1:]
