"""Where a step's time and memory go: tables of torch's profiler, images a second, peak memory; files to be kept.

    python -m benchmarks.profile_step OUT [tiny]

For ViT-S/16 and ViT-B/16 in bfloat16, 2 views of 224 and 8 of 96 pixels, 65,536 prototypes: the step on views that lie on the
device; for ViT-S/16 also fed from JPEGs by all cores; and the peak of a step in the published style at the same batch.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.bench_data import EncodedImages
from benchmarks.bench_step import Subject, Work
from benchmarks.ratios import device, in_a_process, machine, take_turns
from glocal.views.loader import make_loader

FULL = (Work("small", 64, "bf16"), Work("base", 64, "bf16"))
TINY = (Work("micro", 2, "bf16", 64, (64, 48)),)


def images_per_second(step: Callable[[], object], batch: int, rounds: int) -> float:
    """The median of so many steps; on a CPU by CPU time."""
    return batch / statistics.median(take_turns({"step": step}, rounds)["step"])


def table_of(step: Callable[[], object]) -> str:
    """The forty operations that take longest, over three steps."""
    gpu = device().type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities, record_shapes=True, profile_memory=True) as profiler:
        for _ in range(3):
            step()
    order = "self_cuda_time_total" if gpu else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=70))


def from_jpegs(work: Work, steps: int) -> float:
    """Images a second of whole steps, decoding and cropping in workers, the first steps left out."""
    subject = Subject("dino", work)
    loader = make_loader(
        EncodedImages(64 * work.batch, (500, 400)), subject.config.views, batch_size=work.batch, seed=0,
        workers=min(16, os.cpu_count() or 1) - 1, total_steps=steps + 4, pin_memory=device().type == "cuda",
    )  # fmt: skip
    batches = iter(loader)

    def step() -> None:
        subject.views = next(batches).views.to(device())
        subject.step()

    for _ in range(2):
        step()
    return images_per_second(step, work.batch, steps)


def peak_gib(kind: str, work: Work) -> float:
    """Peak memory of two steps in a process of its own: `Subject` is ours, `PlainStep` the published style."""
    views = "s.prepare(); v = s.network_inputs()"
    plain = (
        f"{views}; p = PlainStep({work.size!r}, {work.prototypes}, device(), True); del s; before = peak_memory_gib();"
        "torch.cuda.is_available() and torch.cuda.reset_peak_memory_stats(); p.step(v); p.step(v)"
    )
    return in_a_process(
        "import torch; from benchmarks.bench_step import PlainStep, Subject, Work, device;"
        "from glocal.training.stopwatch import peak_memory_gib; before = peak_memory_gib();"
        f"s = Subject('dino', {work!r}); {plain if kind == 'PlainStep' else 's.step(); s.step()'};"
        "print(peak_memory_gib() - (0 if torch.cuda.is_available() else before))"
    )


def main() -> None:
    """Measure, profile, write."""
    out, tiny = Path(sys.argv[1]), "tiny" in sys.argv[2:]
    out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("medium")
    figures: dict[str, Any] = {"machine": machine()}
    works, rounds = (TINY, 1) if tiny else (FULL, 20)
    for work in works:
        name = f"vit-{work.size}-{work.precision}-batch-{work.batch}"
        subject = Subject("dino", work)
        figures[name] = {"images_per_second": images_per_second(subject.step, work.batch, rounds)}
        (out / f"profile-{name}.txt").write_text(table_of(subject.step), encoding="utf-8")
        del subject
        for kind in ("Subject", "PlainStep"):
            figures[name][f"peak_gib_{kind}"] = peak_gib(kind, work)
        print(f"{name}: {figures[name]}", flush=True)
    figures["from_jpegs_images_per_second"] = from_jpegs(works[0], rounds)
    (out / "step.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(f"from JPEGs: {figures['from_jpegs_images_per_second']:.1f} images/s")


if __name__ == "__main__":
    main()
