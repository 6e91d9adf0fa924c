"""glocal doctor RUN: is it learning, what is wrong, what to change. glocal doctor data=...: what is there to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field
from rich.table import Table

from glocal.cli.pretrain import settled_in_words
from glocal.cli.screen import say, screen
from glocal.cli.settings import read_words
from glocal.config import Config
from glocal.outside import given_path

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


class DoctorSettings(Config):
    """What `glocal doctor data=...` takes."""

    data: str
    """Images to look at before anything is trained on them."""
    recipe: str = "pw-self"
    """The recipe to propose settings of."""
    look_at: Annotated[int, Field(ge=1, le=100_000)] = 400
    """Most images to read."""


def look_at_data(words: Sequence[str]) -> None:
    """Print what a set of images is like, what this machine makes of it, and the settings that suit."""
    settings = read_words(DoctorSettings, words)
    from glocal.data import open_source
    from glocal.data.inspection import inspect
    from glocal.recipes import resolve
    from glocal.recipes.plan import plan

    console, source = screen(), open_source(settings.data)
    inspection = inspect(source, settings.look_at)
    readable = inspection.looked_at - len(inspection.unreadable)
    low, median, high = inspection.sides
    say(console, f"readable: {readable:,} of {inspection.looked_at:,} looked at", *inspection.unreadable[:5])
    say(console, f"shorter side: {low} to {high} pixels, half are below {median}; grey: {inspection.grey:,}")
    say(
        console,
        f"duplicates: {inspection.exact_duplicates:,} exact, {inspection.near_duplicates:,} near (among those looked at)",
    )
    say(console, f"decoding: {inspection.images_per_second:.0f} images a second and process")
    resolved = resolve(settings.recipe, data=settings.data, out="RUN")
    say(console, *settled_in_words(resolved), *plan(resolved.config, source))
    say(console, "proposed:")
    say(console, f"  glocal pretrain {settings.recipe} data={settings.data} out=RUN", style="bold")


def run(words: Sequence[str]) -> None:
    """A run's folder, or `data=...`."""
    if len(words) == 1 and "=" not in words[0]:
        diagnose(words[0])
    else:
        look_at_data(words)


def diagnose(folder: str) -> None:
    """Print the diagnosis of a run and the figures it rests on."""
    from glocal.report.run_story import read_story

    story = read_story(given_path(folder, "run"))
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
