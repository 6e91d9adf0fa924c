"""Whether a run made again lies where the recorded ones lay, and from which tenth of it on it does not."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from glocal.errors import DataError
from glocal.ladder.study import SHARES, Record

WIDTH = 3.0
"""Half-width of a band in deviations over the recorded seeds."""
LEAST = {"loss": 0.02, "figures": 0.5}
"""Smallest half-width: relative for losses, points for figures, so that three close seeds don't make a hair of it."""


@dataclass(frozen=True)
class Band:
    """Where a figure is expected."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether the value lies in the band, its ends included."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Verdict:
    """A reproduced run against its record: the figures that left their bands, and the first share at which the loss did."""

    outside: dict[str, tuple[float, Band]]
    leaves_at: float | None

    @property
    def agrees(self) -> bool:
        """Whether everything lies in its band."""
        return not self.outside and self.leaves_at is None


def band(values: Sequence[float], least: float) -> Band:
    """Mean plus and minus `WIDTH` deviations over seeds, at least `least` to either side.

    >>> band([60.0, 61.0, 62.0], 0.5)
    Band(low=58.0, high=64.0)
    """
    centre = statistics.fmean(values)
    half = max(least, WIDTH * statistics.stdev(values) if len(values) > 1 else least)
    return Band(centre - half, centre + half)


def peers_of(records: Sequence[Record], row: str, ground: str, scale: str) -> list[Record]:
    """The recorded runs of a row on a ground at a scale.

    Raises:
        DataError: when there is none, so nothing to hold a run against.
    """
    peers = [
        r for r in records if (r["kind"], r["row"], r["ground"], r["scale"]) == ("run", row, ground, scale)
    ]
    if not peers:
        raise DataError(
            f"No run of '{row}' on {ground} at scale {scale} is recorded, so there is no band. Run it by "
            f"`glocal ladder` first, or choose a row and a scale that docs/ladder.md shows."
        )
    return peers


def compare(run: Record, peers: Sequence[Record]) -> Verdict:
    """Hold a run against the recorded ones of its row, ground and scale."""
    outside = {}
    for name, value in run["figures"].items():
        expected = band([r["figures"][name] for r in peers if name in r["figures"]], LEAST["figures"])
        if not expected.holds(value):
            outside[name] = (value, expected)
    for number, share in enumerate(SHARES):
        losses = [r["loss"][number] for r in peers]
        expected = band(losses, LEAST["loss"] * abs(statistics.fmean(losses)))
        if not expected.holds(run["loss"][number]):
            return Verdict(outside, share)
    return Verdict(outside, None)
