"""glocal reproduce ROW data=FOLDER [scale=short] [ground=cifar10]: one row of the ladder, held against its record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glocal.cli.ladder import RECORDS
from glocal.cli.screen import say, screen
from glocal.cli.settings import read_words
from glocal.config import Config


class ReproduceSettings(Config):
    """What `glocal reproduce` takes."""

    data: str = "data"
    """The folder in which the grounds' data sets lie."""
    ground: str = "cifar10"
    """The data set."""
    scale: str = "short"
    """FLOPs of the run: smoke 2e10, short 1e13, medium 1.55e14, cpu 1e15, gpu 1e18."""
    seed: int = 100
    """None of the recorded ones, so that the run is a new draw."""
    records: str = RECORDS
    """The file of kept records."""
    out: str = "runs/reproduce"
    """Where the run lies while it is made."""


def run(row: str, words: Sequence[str]) -> None:
    """Run one row and say whether it lies where the recorded runs lie, and from which tenth on it does not.

    Raises:
        DataError: when nothing is recorded for that row, ground and scale; before anything is trained.
    """
    settings = read_words(ReproduceSettings, words)
    from glocal.ladder.band import compare, peers_of
    from glocal.ladder.rows import find_ground, find_row, find_scale
    from glocal.ladder.study import read_records, run_row

    find_row(row), find_ground(settings.ground), find_scale(settings.scale)
    peers = peers_of(read_records(Path(settings.records)), row, settings.ground, settings.scale)
    record = run_row(
        row, settings.ground, scale=settings.scale, data=Path(settings.data), out=Path(settings.out),
        seed=settings.seed, rate=peers[0]["rate"],
    )  # fmt: skip
    verdict, console = compare(record, peers), screen()
    for name, value in record["figures"].items():
        beyond = verdict.outside.get(name)
        expected = f"outside {beyond[1].low:.1f} to {beyond[1].high:.1f}" if beyond else "in the band"
        say(console, f"{name}: {value:.1f}, {expected}")
    if verdict.leaves_at is not None:
        say(console, f"The loss leaves its band at {verdict.leaves_at:.0%} of the run.")
    say(console, "It agrees with the record." if verdict.agrees else "It does not agree with the record.")
