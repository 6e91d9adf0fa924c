"""glocal ladder data=FOLDER [scale=short] [rows=...] [grounds=...] [seeds=...]: every recipe at equal compute, and its page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glocal.cli.screen import say, screen
from glocal.cli.settings import read_words
from glocal.config import Config

RECORDS = "benchmarks/ladder.jsonl"


class LadderSettings(Config):
    """What `glocal ladder` takes."""

    data: str = "data"
    """The folder in which the grounds' data sets lie."""
    scale: str = "cpu"
    """FLOPs a run: smoke 2e10, short 1e13, medium 1.55e14, cpu 1e15, gpu 1e18."""
    rows: tuple[str, ...] = ()
    """Rows to run; none: all."""
    grounds: tuple[str, ...] = ()
    """Data sets to run on; none: all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the runs: one run a seed."""
    tune: bool = True
    """Pick each row's learning rate by three short runs on held-out training images."""
    train: bool = True
    """Run what is missing; false: only write the page."""
    records: str = RECORDS
    """The file of kept records."""
    out: str = "runs/ladder"
    """Where runs lie while they are made."""
    controls: bool = True
    """Measure raw pixels, random weights and k-means patches on each data set, once."""
    page: str = "docs"
    """The folder of ladder.md and its plots."""


def run(words: Sequence[str]) -> None:
    """Run what is missing of the ladder and write its page."""
    settings = read_words(LadderSettings, words)
    from glocal.ladder.controls import run_controls
    from glocal.ladder.page import write_page
    from glocal.ladder.rows import GROUNDS, ROWS, find_ground, find_row, find_scale
    from glocal.ladder.study import read_records, run_ladder

    rows, grounds = settings.rows or tuple(ROWS), settings.grounds or tuple(GROUNDS)
    for name in rows:
        find_row(name)
    for name in grounds:
        find_ground(name)
    find_scale(settings.scale)
    records = Path(settings.records)
    if settings.controls and settings.train:
        run_controls(grounds, settings.seeds, data=Path(settings.data), records=records)
    if settings.train:
        run_ladder(
            rows, grounds, settings.seeds, scale=settings.scale, data=Path(settings.data), out=Path(settings.out),
            records=records, tune=settings.tune,
        )  # fmt: skip
    for path in write_page(read_records(records), Path(settings.page)):
        say(screen(), f"wrote {path}")
