"""Running the ladder: what is missing is run, what is done is kept, one line of JSON a run."""

from __future__ import annotations

import datetime
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glocal.ladder.measure import measure
from glocal.ladder.rows import BUDGETS, RATES, find_ground, run_configuration
from glocal.outside import reading

Record = dict[str, Any]
SHARES = tuple(number / 10 for number in range(1, 11))
"""Shares of a run at which its loss is kept, for the band that a reproduced run is held against."""


def run_ladder(
    rows: Sequence[str], grounds: Sequence[str], seeds: Sequence[int], *, scale: str, data: Path, out: Path,
    records: Path, tune: bool = True,
) -> None:  # fmt: skip
    """Tune each row's rate on held-out training images, then train and measure every seed; skip what `records` has.

    An interrupted run goes on from its checkpoint at the next call. Cost of tuning: `len(RATES)` tenths of a run.
    """
    for ground in grounds:
        for row in rows:
            rate = tuned_rate(row, ground, scale=scale, data=data, out=out, records=records) if tune else 1.0
            for seed in seeds:
                if not _find(records, kind="run", row=row, ground=ground, scale=scale, seed=seed):
                    record = run_row(row, ground, scale=scale, data=data, out=out, seed=seed, rate=rate)
                    append(records, record)


def tuned_rate(row: str, ground: str, *, scale: str, data: Path, out: Path, records: Path) -> float:
    """The factor of the learning rates with the best k-NN (correspondence without labels) on held-out training images."""
    scores: dict[float, float] = {}
    for rate in RATES:
        known = _find(records, kind="tuning", row=row, ground=ground, scale=scale, rate=rate)
        if not known:
            known = [run_row(row, ground, scale=scale, data=data, out=out, seed=1000, rate=rate, tuning=True)]
            append(records, known[0])
        figures = known[0]["figures"]
        scores[rate] = figures.get("knn", figures["correspondence"])
    return max(scores, key=lambda rate: scores[rate])


def run_row(
    row: str,
    ground: str,
    *,
    scale: str,
    data: Path,
    out: Path,
    seed: int,
    rate: float = 1.0,
    tuning: bool = False,
) -> Record:
    """Train and measure one row with one seed; the run folder is removed once its figures are known."""
    import glocal
    from glocal.training.loop import pretrain

    flops = BUDGETS[scale] * (0.1 if tuning else 1.0)
    folder = out / f"{ground}-{scale}" / f"{row.replace(' ', '-')}-{seed}-{rate}"
    config = run_configuration(row, ground, data, folder, flops=flops, seed=seed, rate=rate)
    began = time.perf_counter()
    pretrain(config, resume=(folder / "checkpoints").is_dir())
    seconds = time.perf_counter() - began
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figures = measure(glocal.load(folder), find_ground(ground), data, tuning=tuning)
    shutil.rmtree(folder)
    return {
        "kind": "tuning" if tuning else "run", "row": row, "ground": ground, "scale": scale, "seed": seed, "rate": rate,
        "figures": {name: round(value, 3) for name, value in figures.items()}, "loss": loss_curve(log),
        "flops": log[-1].get("flops"), "images": log[-1].get("images"), "seconds": round(seconds, 1),
        "date": datetime.date.today().isoformat(), "machine": _machine(), "glocal": glocal.__version__,
    }  # fmt: skip


def loss_curve(log: Sequence[Record]) -> list[float]:
    """The loss at tenths of the run: the record nearest to each."""
    losses = [(record["step"], record["loss"]) for record in log if "loss" in record]
    last = losses[-1][0]
    return [round(min(losses, key=lambda pair: abs(pair[0] - share * last))[1], 4) for share in SHARES]


def read_records(path: Path) -> list[Record]:
    """All records of a file; none where there is no file.

    Raises:
        DataError: when it holds anything else.
    """
    with reading(path, "records of the ladder"):
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        records = [dict(json.loads(line)) for line in lines]
        if not all("kind" in record for record in records):
            raise ValueError("every line must be a JSON mapping with a 'kind'")
    return records


def append(path: Path, record: Record) -> None:
    """Add one record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _find(path: Path, **wanted: object) -> list[Record]:
    return [r for r in read_records(path) if all(r.get(key) == value for key, value in wanted.items())]


def _machine() -> str:
    import os
    import platform

    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{device}, {os.cpu_count()} cores, torch {torch.__version__}"
