"""glocal doctor RUN: is it learning, what is wrong, what to change. Reads the run's records, never its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from glocal.cli.screen import say, screen

FIGURES = (
    "score",
    "retrieval",
    "correspondence",
    "rank",
    "patch_rank",
    "overfitting",
    "position_share",
    "high_norm_share",
)


def run(folder: str) -> None:
    """Print the diagnosis and the figures it rests on."""
    from glocal.report.run_story import read_story

    story = read_story(Path(folder).expanduser())
    console, diagnosis = screen(), story.diagnosis
    say(console, diagnosis.sentence, style="bold")
    for finding in diagnosis.findings:
        say(console, f"\n{finding.severity}: {finding.what}")
        if finding.change:
            say(console, f"  change: {finding.change}")
    if diagnosis.status == "healthy":
        say(console, "Nothing is wrong.")
    examined = [record for record in story.records if record.get("verdict.score") is not None]
    if examined:
        best = (
            next(record for record in examined if record["step"] == diagnosis.best)
            if diagnosis.best is not None
            else examined[0]
        )
        console.print(_table(examined[0], best, examined[-1]))


def _table(first: dict[str, Any], best: dict[str, Any], last: dict[str, Any]) -> Table:
    columns = [f"step {record['step']}" for record in (first, best, last)]
    table = Table("without labels", columns[0], f"{columns[1]} (best)", f"{columns[2]} (last)")
    for name in FIGURES:
        values = [record.get(f"verdict.{name}") for record in (first, best, last)]
        if any(value is not None for value in values):
            table.add_row(name, *("-" if value is None else f"{value:.3g}" for value in values))
    return table
