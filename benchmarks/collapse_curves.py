"""The first records of runs that collapse and of runs that don't: what the monitor's borders rest on.

    python -m benchmarks.collapse_curves DATA OUT.jsonl [--only NAME ...]

DATA holds `cifar10/` as parquet. Every run is planned for 2,000 steps and stopped after 160; a record every 4 steps, one line a
run. About a minute of one core each. `tests/test_collapse.py` holds the monitor against the file kept here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from benchmarks.verdict_study import first_rows
from glocal.recipes import configure
from glocal.training.loop import pretrain
from glocal.training.records import Records

PLANNED, STOPPED = 2_000, 160
SETTINGS = (
    "backbone.embed_dim=48", "backbone.depth=2", "backbone.image_size=24", "views.global.size=24", "optimiser.learning_rate=3e-3",
    "objectives.image.head.hidden=128", "objectives.image.head.prototypes=256", "teacher.momentum=0.95", "optimiser.warmup_epochs=1",
    "training.batch_size=64", "training.log_every=4", "training.checkpoint_every=100000", f"training.steps={PLANNED}",
    "speed.workers=0", "speed.precision=fp32", "verdict.enabled=false", "probe.enabled=false",
)  # fmt: skip
ADAMW = (
    "optimiser.kind=adamw", "optimiser.learning_rate=5e-4", "teacher.momentum={start: 0.996, end: 1.0}",
    "backbone.patch_embed_init=drawn", "backbone.attention_init=drawn", "views.global.keep_patches=1",
)  # fmt: skip
CENTRE = ("objectives.image.centring.method=centre",)
STILL = ("objectives.image.centring.momentum=1.0",)
BLUNT = ("objectives.image.teacher_temperature=1.0",)
PATCHES = (
    "objectives.patch.head.hidden=64", "objectives.patch.head.prototypes=128", "objectives.patch.centring.method=centre",
    "objectives.patch.centring.momentum=1.0",
)  # fmt: skip
LARGE_HEAD = ("objectives.image.head.prototypes=4096", "objectives.image.head.init=trunc_normal")
RUNS: dict[str, tuple[str | None, str, tuple[str, ...]]] = {
    "dino": (None, "dino", ()),
    "dino-centre": (None, "dino", CENTRE),
    "dino-adamw-centre": (None, "dino", (*ADAMW, *CENTRE)),
    "dino-adamw-centre-4096": (None, "dino", (*ADAMW, *CENTRE, *LARGE_HEAD)),
    "dino-trunc-normal": (
        None, "dino", (*ADAMW, *CENTRE, *LARGE_HEAD, "backbone.init=trunc_normal", "backbone.depth=4"),
    ),
    "ibot": (None, "ibot", ()),
    "rate-too-low": (
        None, "dino", ("optimiser.learning_rate=1e-6", "optimiser.final_learning_rate=1e-7", "optimiser.muon_learning_rate=1e-5")
    ),
    "uniform-dino": ("uniform", "dino", (*CENTRE, *BLUNT)),
    "uniform-adamw": ("uniform", "dino", (*ADAMW, *CENTRE, *BLUNT)),
    "constant-dino": ("constant", "dino", (*CENTRE, *STILL)),
    "constant-adamw": ("constant", "dino", (*ADAMW, *CENTRE, *STILL)),
    "constant-pw-self": ("constant", "pw-self", (*PATCHES, *CENTRE, *STILL)),
}  # fmt: skip


def one_run(source: Path, folder: Path, name: str) -> dict[str, object]:
    """Train until the stop, as a scheduler's signal would end it, and keep what the monitor looks at."""
    collapse, recipe, settings = RUNS[name]
    config = configure(
        recipe, data=str(source), out=str(folder), preset="cifar", overrides=[*SETTINGS, *settings]
    )
    note, seen = Records.note_loading, [0]

    def counted(self: Records, pairs: list[tuple[str, str]], notes: Iterable[str]) -> None:
        seen[0] += 1
        if seen[0] == STOPPED:
            os.kill(os.getpid(), signal.SIGTERM)
        note(self, pairs, notes)

    Records.note_loading = counted  # type: ignore[method-assign]
    try:
        pretrain(config)
    finally:
        Records.note_loading = note  # type: ignore[method-assign]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(folder)
    kept = [
        {k: round(v, 4) for k, v in r.items() if k in ("step", "loss", "effective_rank") or k.endswith("entropy")}
        for r in records
    ]  # fmt: skip
    return {"run": name, "collapse": collapse, "planned": PLANNED, "records": kept}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", default=[*RUNS])
    words = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = first_rows(words.data / "cifar10", Path(folder) / "five-thousand.parquet", 5_000)
        for name in words.only:
            line = json.dumps(one_run(source, Path(folder) / name, name))
            with words.out.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
