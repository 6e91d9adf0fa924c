"""What the label-free score is worth: runs made on purpose, healthy and broken, and how their score ranks them.

Runs of several recipes and lengths, both collapses, learning rates far too high and low, wrong views, far too long on 500
images, too strong per-patch augmentation. The rule of the score is fitted on two data sets and tested on the third. Every
run leaves one JSON file; a study that was stopped goes on with what is missing.

    python -m benchmarks.verdict_study run DATA OUT [--sets cifar10 ...] [--only NAME ...]
    python -m benchmarks.verdict_study tell OUT|RECORDS.jsonl

DATA holds `cifar10/`, `tiny_imagenet_mini/`, `caltech101/` and `camvid/` as parquet; nothing is fetched.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from scipy.stats import spearmanr

from glocal import load
from glocal.errors import GlocalError
from glocal.evaluation.base import evaluate
from glocal.extraction.work import Work
from glocal.recipes import configure
from glocal.training.loop import pretrain
from glocal.verdict.diagnosis import diagnose
from glocal.verdict.score import score

FITTING, TESTING = ("cifar10", "tiny_imagenet_mini"), "caltech101"
STEPS = 240
WIDTH = 64
TINY = (
    f"backbone.embed_dim={WIDTH}", "backbone.depth=2", "backbone.image_size=24", "views.global.size=24", "training.batch_size=128",
    "training.log_every=10", "training.checkpoint_every=100000", "speed.workers=0", "speed.precision=bf16",
    "probe.bank=2000", "probe.queries=1000",
)  # fmt: skip
CONTRAST = ("objectives.image.head.hidden=128",)
PROTOTYPES = (*CONTRAST, "objectives.image.head.prototypes=256", "teacher.momentum=0.95")
PATCHES = (*PROTOTYPES, "objectives.patch.head.hidden=64", "objectives.patch.head.prototypes=128")
DENSE = ("size=96", "neighbours=[10]", "distances=[cosine]", "every=8")
HEADS = {
    "glocal": CONTRAST,
    "simclr": CONTRAST,
    "dino": PROTOTYPES,
    "local-global": PATCHES,
    "pw-self": PATCHES,
}
CENTRE = ("objectives.image.centring.method=centre", "objectives.patch.centring.method=centre")
STRONG = ("probability=1.0", "brightness=0.95", "contrast=0.95", "saturation=1.0", "hue=0.5")
VARIANTS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "glocal": ("glocal", STEPS, ()),
    "uniform-collapse": (
        "pw-self",
        STEPS,
        (*CENTRE, "objectives.image.teacher_temperature=1.0", "objectives.patch.teacher_temperature=1.0"),
    ),
    "dino": ("dino", STEPS, ()),
    "constant-collapse": (
        "pw-self",
        STEPS,
        (*CENTRE, "objectives.image.centring.momentum=1.0", "objectives.patch.centring.momentum=1.0"),
    ),
    "simclr": ("simclr", STEPS, ()),
    "crops-too-small": ("glocal", STEPS, ("views.global.area=[0.01,0.03]",)),
    "pw-self": ("pw-self", STEPS, ()),
    "no-distortion": ("glocal", STEPS, ("views.global.area=[0.95,1.0]", "views.global.photometric=[[]]")),
    "glocal-short": ("glocal", STEPS // 4, ()),
    "rate-too-low": ("glocal", STEPS, ("optimiser.learning_rate=2e-6", "optimiser.muon_learning_rate=2e-5")),
    "local-global": ("local-global", STEPS, ()),
    "rate-too-high": ("glocal", STEPS, ("optimiser.learning_rate=0.1", "optimiser.muon_learning_rate=1.0")),
    "glocal-long": ("glocal", 2 * STEPS, ()),
    "patch-colours-too-strong": (
        "pw-self",
        STEPS,
        tuple(
            f"views.global.photometric.{view}.{operation}.{setting}"
            for view, operation in ((0, 2), (1, 3))
            for setting in STRONG
        ),
    ),
    "dino-short": ("dino", STEPS // 4, ()),
    "too-long-on-500": ("glocal", 2 * STEPS, ()),
}
"""Healthy and broken ones in turn, so that a study that is stopped has some of each."""


def run_study(data: Path, out: Path, sets: list[str], only: list[str]) -> None:
    """Make every run that has no record yet."""
    out.mkdir(parents=True, exist_ok=True)
    for name in only or VARIANTS:
        for images in sets:
            record = out / f"{images}.{name}.json"
            if not record.exists():
                began = time.perf_counter()
                found = one_run(data, out / "runs" / f"{images}.{name}", images, name)
                record.write_text(
                    json.dumps(found | {"seconds": time.perf_counter() - began}, indent=1) + "\n"
                )
                print(f"{images} {name}: score {found['score']}, k-NN {found['knn']}", flush=True)


def one_run(data: Path, out: Path, images: str, name: str) -> dict[str, Any]:
    """Train, read the records, evaluate on CamVid; the run's folder is removed."""
    recipe, steps, settings = VARIANTS[name]
    shutil.rmtree(out, ignore_errors=True)
    source = (
        first_rows(data / images, out.parent / f"{images}-500.parquet")
        if name.endswith("500")
        else data / images
    )
    overrides = [
        *TINY,
        *HEADS[recipe],
        f"training.steps={steps}",
        f"verdict.every={max(1, steps // 5)}",
        f"probe.every={max(1, steps // 5)}",
        f"probe.data={data / images}",
        f"verdict.data={data / images}:{held_out(images)}",
    ]
    config = configure(
        recipe, data=str(source), out=str(out), preset="cifar", overrides=[*overrides, *settings]
    )
    try:
        pretrain(config)
        stopped = None
        dense = evaluate(
            "knn-seg", load(out), str(data / "camvid"), work=Work(progress=False),
            overrides=DENSE,
        ).numbers["mIoU"]  # fmt: skip
    except GlocalError as error:
        stopped, dense = str(error), None
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(out)
    return {"set": images, "variant": name, "stopped": stopped, "miou": dense, **summary(records, steps)}


def summary(records: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """What the study keeps of a run: the figures at every examination, k-NN beside them, and when what was diagnosed."""
    knn = {r["step"]: value for r in records for key, value in r.items() if key.endswith("top1")}
    knn = {step: 100 * share for step, share in knn.items()}
    examined = [
        {key.removeprefix("verdict."): value for key, value in r.items()} | {"knn": knn.get(r["step"])}
        for r in records
        if "verdict.score" in r
    ]
    accused = next(
        (r["step"] for n, r in enumerate(records) if diagnose(records[: n + 1], steps).status == "failed"),
        None,
    )
    last: dict[str, float] = next((r for r in reversed(records) if "image.target_entropy" in r), {})
    return {
        "steps": steps, "score": examined[-1]["score"], "knn": examined[-1]["knn"], "examined": examined, "accused_at": accused,
        "sentence": diagnose(records, steps).sentence, "last": {k: v for k, v in last.items() if "entropy" in k or "rank" in k},
    }  # fmt: skip


def held_out(images: str) -> str:
    """The part of a set that no run trains on."""
    return "val" if images == "tiny_imagenet_mini" else "test"


def first_rows(folder: Path, out: Path, count: int = 500) -> Path:
    """The first images of a set's training part, as a file of its own."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        file = next(p for p in sorted(folder.rglob("*.parquet")) if p.name.startswith("train"))
        pq.write_table(pq.read_table(file).slice(0, count), out)
    return out


def tell(out: Path) -> None:
    """Print a line a run, then Spearman's correlation of the score with k-NN and CamVid's mIoU, set by set."""
    packed = (
        out.read_text().splitlines() if out.is_file() else [p.read_text() for p in sorted(out.glob("*.json"))]
    )
    runs = [with_score(json.loads(text)) for text in packed]
    for r in runs:
        numbers = " ".join(
            f"{k} {r[k]:6.2f}" if r[k] is not None else f"{k} {'-':>6}" for k in ("score", "knn", "miou")
        )
        print(f"{r['set']:20} {r['variant']:26} {numbers}  named at {r['accused_at']} of {r['steps']}")
    for images in (*FITTING, TESTING):
        some = [
            r for r in runs if r["set"] == images and r["score"] is not None and math.isfinite(r["score"])
        ]
        if len(some) > 2:
            print(
                f"{images}: {len(some)} runs, "
                + ", ".join(f"Spearman with {k} {correlation(some, k):.3f}" for k in ("knn", "miou"))
            )
            print(
                f"  checkpoint by score below the best by k-NN: {', '.join(f'{lost(r):.1f}' for r in some)} points"
            )


def with_score(run: dict[str, Any]) -> dict[str, Any]:
    """Score a recorded run by the rule as it is, so that a change of the rule costs no run."""
    for figures in run["examined"]:
        if math.isfinite(figures["retrieval"]):
            figures["score"] = score(figures | {"rank_share": 100 * figures["rank"] / WIDTH})
    return run | {"score": run["examined"][-1]["score"]}


def correlation(runs: list[dict[str, Any]], label: str) -> float:
    """Spearman's rank correlation of the final score with a figure that needs labels."""
    pairs = np.array([(r["score"], r[label]) for r in runs if r[label] is not None])
    return float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)


def lost(run: dict[str, Any]) -> float:
    """Points of k-NN between the best examined checkpoint and the one of the highest score."""
    examined = [e for e in run["examined"] if e["knn"] is not None and math.isfinite(e["score"])]
    return float(max(e["knn"] for e in examined) - max(examined, key=lambda e: e["score"])["knn"])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "tell"))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--sets", nargs="+", default=[*FITTING, TESTING])
    parser.add_argument("--only", nargs="+", default=[])
    words = parser.parse_args()
    torch.set_num_threads(1)
    if words.what == "run":
        run_study(words.folders[0], words.folders[1], words.sets, words.only)
    tell(words.folders[-1])


if __name__ == "__main__":
    main()
