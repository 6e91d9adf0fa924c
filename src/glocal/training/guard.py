"""Whether continuing from weights made them better: the last and the best weights against the untouched ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glocal.training.metrics_log import read_records

TOLERANCE = 1.0
"""Points by which a figure may lie below the untouched model's and still count as equal."""


def conclude(metrics: Path, export: Path) -> str:
    """Say how the run compares with line zero, and hand over the best weights where the last are worse.

    Figures are the label-free score and, where images have labels, k-NN. When the last weights are worse in either, they
    move to `export/last` and those of the best score, perhaps the untouched ones, take their place in `export`.
    """
    records = read_records(metrics)
    lines = {name: _values(records, name) for name in _figures(records)}
    lines = {name: values for name, values in lines.items() if len(values) > 1 and values[0][0] == 0}
    if not lines:
        return "Nothing was measured at the start, so whether continuing helped is not known. See verdict.enabled."
    told = "; ".join(
        f"{name} {values[0][1]:.1f} untouched, {values[-1][1]:.1f} at the end"
        for name, values in lines.items()
    )
    if all(values[-1][1] >= values[0][1] - TOLERANCE for values in lines.values()):
        better = any(values[-1][1] > values[0][1] + TOLERANCE for values in lines.values())
        return f"Continuing {'helped' if better else 'changed little'}: {told}."
    best = export / "best"
    if not (best / "config.json").exists():
        return (
            f"Continuing made it worse: {told}. Start from the untouched weights, with a lower learning rate."
        )
    step = json.loads((best / "config.json").read_text())["glocal"]["extra"]["step"]
    _hand_over(export, best)
    return (
        f"Continuing made it worse: {told}. {export} holds the weights of the best score, of step {step}"
        f"{' (untouched)' if step == 0 else ''}; the last are in {export / 'last'}."
    )


def _figures(records: Sequence[dict[str, Any]]) -> list[str]:
    """Names of what is compared: the score, and k-NN accuracies."""
    names = dict.fromkeys(name for record in records for name in record)
    return [name for name in names if name == "verdict.score" or name.endswith("_top1")]


def _values(records: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(record["step"], record[name]) for record in records if record.get(name) is not None]


def _hand_over(export: Path, best: Path) -> None:
    last = export / "last"
    last.mkdir(exist_ok=True)
    for file in [path for path in export.iterdir() if path.is_file()]:
        file.replace(last / file.name)
    for file in best.iterdir():
        shutil.copy2(file, export / file.name)
