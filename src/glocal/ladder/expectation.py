"""What a run may reach: the band of the ladder's recorded runs that were configured like it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import glocal
from glocal.ladder.rows import GROUNDS, ROWS, run_configuration
from glocal.ladder.study import Record
from glocal.training.config import RunConfig

NEAR = 1.25
"""A run of at most this many times the recorded FLOPs, or of this part of them, is such a run."""


def records_of_this_version() -> Path:
    """The ladder's records: within the installed package, or in the repository that it is imported from."""
    package = Path(glocal.__file__).parent
    inside = package / "ladder" / "ladder.jsonl"
    return inside if inside.exists() else package.parents[1] / "benchmarks" / "ladder.jsonl"


def expectations(config: RunConfig, flops: float, records: Sequence[Record]) -> list[str]:
    """A sentence for every data set on which runs configured like this one, of about as many FLOPs, are recorded."""
    told = []
    for name, row in ROWS.items():
        for ground in GROUNDS if row.recipe == config.recipe else ():
            peers = [
                r for r in records
                if (r["kind"], r["row"], r["ground"]) == ("run", name, ground) and 1 / NEAR < flops / r["flops"] < NEAR
            ]  # fmt: skip
            if peers and _alike(config, run_configuration(
                name, ground, Path(), Path(), flops=flops, seed=0, rate=peers[0]["rate"]
            )):  # fmt: skip
                told.append(f"such runs reached on {ground}: {_bands(peers)} ({len(peers)} recorded)")
    return told


def _alike(config: RunConfig, recorded: RunConfig) -> bool:
    """Whether both learn the same way: everything but data, length and what only watches."""
    return (
        all(
            getattr(config, setting) == getattr(recorded, setting)
            for setting in (
                "views",
                "backbone",
                "objectives",
                "optimiser",
                "teacher",
                "crops",
                "init",
                "adapt",
            )
        )
        and config.training.batch_size == recorded.training.batch_size
    )


def _bands(peers: Sequence[Record]) -> str:
    names = [name for name in peers[0]["figures"] if all(name in r["figures"] for r in peers)]
    values = {name: [r["figures"][name] for r in peers] for name in names}
    return ", ".join(f"{name} {min(v):.1f} to {max(v):.1f}" for name, v in values.items())
