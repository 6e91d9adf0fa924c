"""Runs of a second: a tiny network on forty noisy pictures, what they leave, and the same in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from glocal.config import to_yaml
from glocal.recipes import configure
from glocal.training.config import RunConfig
from glocal.training.metrics_log import read_records
from glocal.training.records import Records

FAST = [
    "backbone.embed_dim=32", "backbone.depth=2", "backbone.num_heads=2", "backbone.patch_size=8", "backbone.image_size=16",
    "backbone.drop_path=0.2", "views.global.size=16", "views.local.size=8", "training.batch_size=8", "training.log_every=2",
    "objectives.image.head.hidden=32", "objectives.image.head.bottleneck=16", "objectives.image.head.prototypes=32",
    "speed.workers=0", "speed.precision=fp32", "probe.enabled=false", "verdict.enabled=false",
]  # fmt: skip


def noisy_pictures(root: Path, count: int = 40) -> Path:
    """Noise in two class folders, and one file that is no picture."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = root / ("a" if number % 2 else "b") / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(path)
    (root / "a" / "broken.jpg").write_bytes(b"no picture")
    return root


def config_for(folder: Path, out: Path, *more: str, recipe: str = "pw-self") -> RunConfig:
    return configure(recipe, data=str(folder), out=str(out), preset="small", overrides=[*FAST, *more])


def checkpoint(out: Path, name: str = "last.pt") -> dict[str, Any]:
    state: dict[str, Any] = torch.load(out / "checkpoints" / name, weights_only=True)
    return state


def weights(out: Path) -> dict[str, torch.Tensor]:
    teacher: dict[str, torch.Tensor] = checkpoint(out)["teacher"]
    return teacher


def records(out: Path) -> list[dict[str, Any]]:
    return read_records(out / "metrics.jsonl")


def stop_after(steps: int | None, number: int = signal.SIGTERM) -> None:
    """Ask the process itself to stop after some steps, as a scheduler's signal would; None: never again."""
    original = stop_after.__dict__.setdefault("original", Records.note_loading)
    count = {"steps": 0}

    def counted(kept: Records, unreadable: list[tuple[str, str]], notes: Iterable[str]) -> None:
        count["steps"] += 1
        if count["steps"] == steps:
            os.kill(os.getpid(), number)
        original(kept, unreadable, notes)

    setattr(Records, "note_loading", original if steps is None else counted)  # noqa: B010


def start_elsewhere(
    config: RunConfig, plan: Path, *, command: tuple[str, ...] = (), **environment: str
) -> subprocess.Popen[bytes]:
    """The run in a process (group) of its own, by `command` (torchrun) if one is given."""
    plan.mkdir(exist_ok=True)
    (plan / "config.yaml").write_text(to_yaml(config))
    script = plan / "go.py"
    script.write_text(
        "import sys\nfrom glocal.training.loop import pretrain\nfrom glocal.training.run_folder import read_run_config\n"
        "pretrain(read_run_config(sys.argv[1]))\n"
    )
    return subprocess.Popen(
        [sys.executable, *command, str(script), str(plan)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )


def wait_for_records(
    process: subprocess.Popen[bytes], out: Path, count: int = 1, seconds: float = 90
) -> None:
    """Until so many records are there."""
    for _ in range(int(seconds * 10)):
        if (out / "metrics.jsonl").exists() and len(records(out)) >= count:
            return
        assert process.stderr is not None
        assert process.poll() is None, process.stderr.read().decode()[-3000:]
        time.sleep(0.1)
    raise AssertionError(f"{count} records were not written")
