"""Continue, start anew, or leave the weights alone: the same compute and the same measures on images of another kind.

A base model is trained by the flagship's recipe on a known set; then, for a new set and a number of its images, the
untouched base stands beside a model trained from nothing and beside the base continued in several ways. Every run leaves
one line of JSON; a study that was stopped goes on with what is missing.

    python -m benchmarks.continue_study run DATA OUT [--pairs cifar10-caltech101 ...] [--images 0 1000] [--seeds 0 1 2]
    python -m benchmarks.continue_study tell OUT

DATA holds the sets as parquet; nothing is fetched. `--images 0` takes all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

import glocal
from glocal.data import hold_out, open_source
from glocal.evaluation.classification.knn import KnnConfig
from glocal.extraction.work import Work
from glocal.ladder.measure import measure
from glocal.ladder.rows import Ground
from glocal.models.encoder import Encoder
from glocal.recipes import configure
from glocal.training.loop import pretrain

GROUNDS = {
    name: Ground(f"{name}:train", f"{name}:{held_out}", "cifar")
    for name, held_out in (("cifar10", "test"), ("tiny_imagenet_mini", "val"), ("caltech101", "test"))
}
PAIRS = ("cifar10-caltech101", "tiny_imagenet_mini-caltech101", "cifar10-tiny_imagenet_mini")
UNTOUCHED, SCRATCH = "untouched", "from scratch"
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    UNTOUCHED: ("", ()),
    SCRATCH: ("glocal", ()),
    "continue": ("continue", ()),
    "contrast only": ("continue", ("objectives.relations=null",)),
    "relations only": (
        "continue",
        ("objectives.image=null", "objectives.patch=null", "training.heads_first=false"),
    ),
    "adapt=lora": ("continue", ("adapt=lora",)),
    "adapt=last:1": ("continue", ("adapt=last:1",)),
}
FIGURES = ("knn", "linear", "correspondence", "old_knn")
Record = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """Where the study lies and what its runs may cost."""

    data: Path
    out: Path
    base_flops: float
    flops: float
    settings: tuple[str, ...] = ()

    @property
    def records(self) -> Path:
        """One line a run."""
        return self.out / "continue.jsonl"


def run_study(
    study: Study, pairs: Sequence[str], counts: Sequence[int], seeds: Sequence[int], only: Sequence[str]
) -> None:
    """Make every run that has no record yet, breadth first: all variants of a seed before the next seed."""
    for seed in seeds:
        for pair in pairs:
            for count in counts:
                for variant in only or VARIANTS:
                    name = {"pair": pair, "images": count, "variant": variant, "seed": seed}
                    if not any(all(r[k] == v for k, v in name.items()) for r in read(study.records)):
                        began = time.process_time()
                        figures = one_run(study, pair, count, variant, seed)
                        record = name | figures | {"cpu_seconds": round(time.process_time() - began)}
                        with study.records.open("a") as file:
                            file.write(json.dumps(record | {"flops": study.flops}) + "\n")
                        print(record, flush=True)


def one_run(study: Study, pair: str, count: int, variant: str, seed: int) -> dict[str, float]:
    """Figures of one variant on the new set's held-out images, and k-NN on the known one."""
    known, new = pair.split("-")
    base = base_model(study, known, seed)
    recipe, settings = VARIANTS[variant]
    if not recipe:
        return figures_of(study, glocal.load(base), known, new)
    out = study.out / "run"
    shutil.rmtree(out, ignore_errors=True)
    data = str(some_rows(study, new, count)) if count else f"{study.data}/{GROUNDS[new].train}"
    pretrain(
        configure(
            recipe, data=data, out=str(out), preset="cifar", init=None if variant == SCRATCH else str(base),
            overrides=[*limits(study.flops, seed), *study.settings, *settings],
        )
    )  # fmt: skip
    return figures_of(study, glocal.load(out), known, new)


def base_model(study: Study, known: str, seed: int) -> Path:
    """The run folder of the base model of a set and seed, trained on first use; an interrupted one is resumed."""
    out = study.out / f"base-{known}-{seed}"
    if not (out / "export").is_dir():
        config = configure(
            "glocal", data=f"{study.data}/{GROUNDS[known].train}", out=str(out), preset="cifar",
            overrides=[*limits(study.base_flops, seed), *study.settings],
        )  # fmt: skip
        pretrain(config, resume=(out / "checkpoints").is_dir())
    return out


def limits(flops: float, seed: int) -> list[str]:
    """What every run of the study has in common."""
    return [f"training.flops={flops}", f"seed={seed}", "probe.enabled=false", "verdict.enabled=false",
            "speed.precision=bf16", "speed.workers=0"]  # fmt: skip


def figures_of(study: Study, encoder: Encoder, known: str, new: str) -> dict[str, float]:
    """The ladder's figures on the new set, and k-NN on 12,000 training images of the known one (2,000 of them asked)."""
    figures = measure(encoder, GROUNDS[new], study.data)
    source = open_source(f"{study.data}/{GROUNDS[known].train}")
    some = source.subset(np.random.default_rng(0).permutation(len(source))[:12_000].tolist())
    bank, queries = hold_out(some, min(2000, len(some) // 5), seed=0)
    old = KnnConfig(ks=(20,)).run(encoder, {"train": bank, "test": queries}, Work(progress=False))
    return {name: round(value, 3) for name, value in (figures | {"old_knn": old.numbers["k20_top1"]}).items()}


def some_rows(study: Study, name: str, count: int) -> Path:
    """`count` images of a set's training part, drawn at random, as a file of their own."""
    out = study.out / f"{name}-{count}.parquet"
    if not out.exists():
        file = next(p for p in sorted((study.data / name).rglob("*.parquet")) if p.name.startswith("train"))
        table = pq.read_table(file)
        rows = np.random.default_rng(0).permutation(len(table))[:count]
        pq.write_table(table.take(np.sort(rows)), out)
    return out


def read(path: Path) -> list[Record]:
    """All records of a study."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tell(records: Sequence[Record]) -> str:
    """A markdown table a pair and number of images: mean over seeds, half their range, and the gain on the untouched."""
    lines: list[str] = []
    for pair, count in sorted({(r["pair"], r["images"]) for r in records}):
        here = [r for r in records if (r["pair"], r["images"]) == (pair, count)]
        lines += ["", f"### {pair.replace('-', ' to ')}, {count or 'all'} images", ""]
        lines += ["| | seeds | k-NN | linear | correspondence | k-NN on the known set |", "|" + "---|" * 6]
        for variant in VARIANTS:
            runs = [r for r in here if r["variant"] == variant]
            if runs:
                cells = [_cell(runs, here, figure) for figure in FIGURES]
                lines.append(f"| {variant} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines).strip()


def _cell(runs: Sequence[Record], here: Sequence[Record], figure: str) -> str:
    values = [r[figure] for r in runs]
    start = {r["seed"]: r[figure] for r in here if r["variant"] == UNTOUCHED}
    gains = [r[figure] - start[r["seed"]] for r in runs if r["seed"] in start and r["variant"] != UNTOUCHED]
    spread = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}" + (f" ({statistics.fmean(gains):+.1f})" if gains else "")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "tell"))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS))
    parser.add_argument("--images", nargs="+", type=int, default=[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--base-flops", type=float, default=1.55e14)
    parser.add_argument("--flops", type=float, default=3e13)
    parser.add_argument("--set", nargs="+", default=[], help="settings of every run")
    words = parser.parse_args()
    torch.set_num_threads(1)
    out = words.folders[-1]
    if words.what == "run":
        out.mkdir(parents=True, exist_ok=True)
        study = Study(words.folders[0], out, words.base_flops, words.flops, tuple(words.set))
        run_study(study, words.pairs, words.images, words.seeds, words.only)
    print(tell(read(out if out.is_file() else out / "continue.jsonl")))


if __name__ == "__main__":
    main()
