"""Every choice that a default rests on, trained at the same budget and evaluated alike, in one command.

    python -m benchmarks.ablation --data cifar10 [--camvid FOLDER] [--seeds 0 1 2] [--only dino pw-self] [--out runs/ablation]
    python -m benchmarks.ablation --table runs/ablation

One process a core, one thread each, so that runs don't wait for each other. A finished run's figures are kept in
`results.jsonl`, so an interrupted study goes on. The scaled-down budget below is for two cores; on a GPU give
`--scale full`, which trains the `cifar` preset for its own epochs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from glocal.recipes import configure

# Small enough that 32,000 images take some two or three minutes of one core; every method gets exactly these.
TWO_CORES = [
    "backbone.embed_dim=64", "backbone.depth=3", "backbone.num_heads=4", "training.batch_size=64",
    "training.steps=500", "teacher.momentum=0.95", "optimiser.warmup_epochs=0.05", "speed.workers=0", "speed.device=cpu",
]  # fmt: skip
PURITY = "local_group.neighbour_purity"
COMMON = ["probe.enabled=false", "training.log_every=25"]


def _tokens(norm: str, tokens: str) -> list[str]:
    return [
        f"objectives.local_group.{vector}.{key}={value}"
        for vector in ("query", "row")
        for key, value in (("norm", norm), ("tokens", tokens))
    ]


def _rows(count: int) -> list[str]:
    return [
        f"objectives.{term}={count}" for term in ("instance.queue", "local_group.queue", "local_group.memory")
    ]


# name: recipe, overrides, patch operations (None: the recipe's own)
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "dino": ("dino", []),
    "local-global": ("local-global", []),
    "pw-self": ("pw-self", []),
    "pw-self code": ("pw-self/code", []),
    "pw-self code, teacher too": ("pw-self/code-both", []),
    "pw-self literal .5": ("pw-self/literal-0.5", []),
    "pw-self literal .2": ("pw-self/literal-0.2", []),
    "pw-self literal only": ("pw-self/literal-only", []),
    "rule paper": ("local-global", ["objectives.patch.rule=paper"]),
    "weight overlap": ("local-global", ["objectives.patch.match_weight=overlap"]),
    "bilinear": ("local-global", ["objectives.patch.bilinear=true"]),
    "shared head": (
        "local-global",
        ["objectives.patch.head_of=image", "objectives.patch.head.prototypes=1024"],
    ),
    "shared crops": ("local-global", ["crops=batch"]),
    "w_patch .5": ("local-global", ["objectives.patch.weight=0.5"]),
    "w_patch 2": ("local-global", ["objectives.patch.weight=2"]),
    "half of the patches": ("local-global", ["objectives.patch.share=0.5"]),
    "selfpatch": ("selfpatch", []),
    "pw-self + selfpatch": ("pw-self-selfpatch", []),
    "mugs": ("mugs", []),
    "mugs without instance": ("mugs", ["objectives.instance.weight=0"]),
    "mugs without local group": ("mugs", ["objectives.local_group.weight=0"]),
    "mugs without group": ("mugs", ["objectives.group.weight=0"]),
    "mugs tokens patches": ("mugs", _tokens("after", "patches")),
    "mugs tokens all": ("mugs", _tokens("after", "all")),
    "mugs tokens patches before norm": ("mugs", _tokens("before", "patches")),
    "mugs tokens of the reference": (
        "mugs",
        [*_tokens("before", "all")[:2], *_tokens("after", "patches")[2:]],
    ),
    "mugs k 2": ("mugs", ["objectives.local_group.neighbours=2"]),
    "mugs k 32": ("mugs", ["objectives.local_group.neighbours=32"]),
    "mugs rows 1024": ("mugs", _rows(1024)),
    "mugs rows 32768": ("mugs", _rows(32768)),
    "mugs weak only": ("mugs", ["views.global.strong_probability=0"]),
    "mugs strong only": ("mugs", ["views.global.strong_probability=1"]),
}


def build(name: str, data: str, out: Path, seed: int, scale: str, for_all: Sequence[str] = ()) -> Any:
    """The configuration of one variant."""
    from glocal.recipes.local_global import with_patch_operations
    from glocal.views.photometric import presets

    recipe, more = VARIANTS[name]
    base, _, operations = recipe.partition("/")
    overrides = [*(TWO_CORES if scale == "two-cores" else []), *COMMON, *more, *for_all, f"seed={seed}"]
    config = configure(
        "local-global" if operations else base, data=data, out=str(out), preset="cifar", overrides=overrides
    )
    if operations:
        ops = {
            "code": presets.patch_code(seen_by="student"),
            "code-both": presets.patch_code(),
            "literal-0.5": presets.patch_literal(probability=0.5, seen_by="student"),
            "literal-0.2": presets.patch_literal(probability=0.2, seen_by="student"),
            "literal-only": presets.patch_literal(seen_by="student"),
        }[operations]
        views = dict(config.views)
        for group in views:
            bare = (
                views[group].model_copy(update={"photometric": ((),)})
                if operations == "literal-only"
                else views[group]
            )
            views[group] = with_patch_operations(bare, ops)
        config = config.model_copy(update={"views": views, "recipe": name})
    return config


def run_one(job: tuple[str, int, str, str, str | None, str, Sequence[str]]) -> dict[str, Any]:
    """Train and evaluate one variant with one seed; return its figures."""
    name, seed, data, out, camvid, scale, for_all = job
    import torch

    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    from glocal.training.loop import pretrain

    folder = Path(out) / "runs" / f"{name.replace(' ', '-')}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    pretrain(build(name, data, folder, seed, scale, for_all))
    seconds = time.perf_counter() - began
    return {"variant": name, "seed": seed, "seconds": seconds, **measure(folder, data, camvid)}


def measure(folder: Path, data: str, camvid: str | None) -> dict[str, float]:
    """k-NN and linear probe on 10,000 and 5,000 labelled images, correspondence, CamVid by k-NN segmentation, and the
    label purity of Mugs' neighbours over the second half of training.
    """
    import glocal
    from glocal.data import hold_out, open_source
    from glocal.evaluation.classification.knn import KnnConfig
    from glocal.evaluation.classification.linear import LinearProbe
    from glocal.evaluation.correspondence import Correspondence
    from glocal.evaluation.segmentation.knn_segmentation import KnnSegmentation
    from glocal.extraction.work import Work

    encoder = glocal.load(folder)
    work = Work(progress=False)
    train, test = open_source(data, "train"), open_source(test_of(data), "test")
    _, bank = hold_out(train, min(10_000, len(train) // 2), seed=0)
    _, queries = hold_out(test, min(5_000, len(test) // 2), seed=0)
    splits = {"train": bank, "test": queries}
    linear = LinearProbe(inputs=("cls", "cls+mean")).run(encoder, splits, work).numbers
    numbers = {
        "knn": KnnConfig(ks=(20,)).run(encoder, splits, work).numbers["k20_top1"],
        "linear": linear["top1"],
        "correspondence": Correspondence(images=1000)
        .run(encoder, {"test": queries}, work)
        .numbers["accuracy"],
    }
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    purity = [record[PURITY] for record in log[len(log) // 2 :] if PURITY in record]
    if purity:
        numbers["purity"] = 100 * statistics.mean(purity)
    if camvid is not None:
        # 64 pixels a side keep 94,000 training patches: seconds on one core, and the same for every variant.
        segmentation = KnnSegmentation(size=64, neighbours=(10,), distances=("cosine",))
        numbers["camvid"] = segmentation.run(encoder, camvid, work).numbers["mIoU"]
    return numbers


def test_of(data: str) -> str:
    """The test file beside a train file; else the same data."""
    return data.replace("train-", "test-") if data.endswith(".parquet") else data


def table(out: Path) -> str:
    """Mean and spread (largest minus smallest) of every variant over its seeds, as Markdown."""
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    names = [k for k in {k: None for row in rows for k in row} if k not in ("variant", "seed", "seconds")]
    lines = [f"| variant | seeds | {' | '.join(names)} | minutes |", "|" + "---|" * (len(names) + 3)]
    for variant in VARIANTS:
        mine = [r for r in rows if r["variant"] == variant]
        if mine:
            cells = [_cell([r[n] for r in mine if n in r]) for n in names]
            lines.append(
                f"| {variant} | {len(mine)} | {' | '.join(cells)} | {statistics.mean(r['seconds'] for r in mine) / 60:.1f} |"
            )
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{statistics.mean(values):.1f}" + (
        f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    )


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--camvid")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--scale", choices=["two-cores", "full"], default="two-cores")
    parser.add_argument(
        "--set", nargs="+", default=[], help="settings for every variant: training.steps=2000"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    if arguments.table is None:
        _run_all(arguments, run_one)
    print(table(arguments.table or arguments.out))


def _run_all(arguments: argparse.Namespace, work: Callable[[Any], dict[str, Any]]) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.out / "results.jsonl"
    done = (
        {(r["variant"], r["seed"]) for r in map(json.loads, log.read_text().splitlines())}
        if log.exists()
        else set()
    )
    jobs = [
        (name, seed, arguments.data, str(arguments.out), arguments.camvid, arguments.scale, arguments.set)
        for seed in arguments.seeds
        for name in arguments.only
        if (name, seed) not in done
    ]
    with multiprocessing.get_context("spawn").Pool(arguments.processes, maxtasksperchild=1) as pool:
        for result in pool.imap_unordered(work, jobs):
            with log.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(result, flush=True)


if __name__ == "__main__":
    main()
