"""What anything trained must beat, measured as every row is: raw pixels, random weights, k-means on small patches."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from glocal.data import open_source
from glocal.evaluation.baselines import baselines
from glocal.ladder.measure import measure
from glocal.ladder.rows import find_ground, run_configuration
from glocal.ladder.study import append, read_records
from glocal.models.vit import VisionTransformer
from glocal.training.weights import as_encoder

_DRAWN = ("random weights", "k-means patches")


def run_controls(grounds: Sequence[str], seeds: Sequence[int], *, data: Path, records: Path) -> None:
    """Measure the controls of each ground that `records` lacks; those that draw nothing once, the others a seed.

    Random weights are of the flagship's network. Cost: about that of measuring as many rows.
    """
    for ground in grounds:
        config = run_configuration("glocal", ground, data, Path(), flops=1.0, seed=0)
        place = find_ground(ground)
        like = as_encoder(config, VisionTransformer(config.backbone))
        for seed in seeds:
            for control in baselines(like, open_source(f"{data}/{place.train}"), seed):
                row = control.encoder.name.removeprefix("baseline: ")
                name = {"kind": "control", "row": row, "ground": ground, "seed": seed}
                if (seed != seeds[0] and row not in _DRAWN) or _known(records, name):
                    continue
                figures = measure(control.encoder, place, data, knn=control.overrides_of("knn"))
                rounded = {figure: round(value, 3) for figure, value in figures.items()}
                append(records, name | {"figures": rounded, "date": datetime.date.today().isoformat()})


def _known(records: Path, name: dict[str, object]) -> bool:
    return any(all(r.get(key) == value for key, value in name.items()) for r in read_records(records))
