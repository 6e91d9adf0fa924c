"""What SelfPatch's term costs: a `selfpatch` step against a `dino` step on the same student views.

    python benchmarks/bench_selfpatch.py [--size tiny small] [--images 2] [--repeats 5] [--device cpu] [--variants ...]

Held to 1.3 times the time and 1.3 times the peak memory. A step is both networks' forward passes, the backward pass,
the objectives' state, AdamW and the teacher's average, at the `imagenet` scale with its heads; the views are drawn
once. Recipes alternate in one process, so that a busy machine slows all of them; memory is measured in a process of its
own for each (CPU: growth of the resident set's peak over what importing takes; GPU: the allocator's peak).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from glocal.models.teacher import MovingAverage
from glocal.recipes import configure
from glocal.schedules import Progress
from glocal.training.config import RunConfig
from glocal.training.network import StepInput, build_distillation
from glocal.training.optimiser import build_optimiser, clip_gradients
from glocal.views.batch import ViewBatch, Views

TERM = "objectives.neighbours"
VARIANTS = {
    "dino": ("dino", []),
    "selfpatch": ("selfpatch", []),
    "selfpatch, share 0.5": ("selfpatch", [f"{TERM}.share=0.5"]),
    "selfpatch, own attention": ("selfpatch", [f"{TERM}.aggregation=own_attention"]),
    "selfpatch, reference head": ("selfpatch", [f"{TERM}.head.hidden=2048", f"{TERM}.head.bottleneck=256"]),
}
PROGRESS = Progress(step=5000, total_steps=10000, steps_per_epoch=100)


def settings(variant: str, size: str) -> RunConfig:
    recipe, overrides = VARIANTS[variant]
    return configure(
        recipe, data="DATA", out="RUN", preset="imagenet", overrides=[f"backbone.size={size}", *overrides]
    )


def random_views(config: RunConfig, images: int, device: torch.device) -> Views:
    """Noise in the shape of the recipe's views; the term reads no geometry."""
    groups = {}
    for name, group in config.views.items():
        shape = (images, group.count)
        coins = torch.zeros(shape, dtype=torch.bool)
        pixels = torch.randn(*shape, 3, *group.height_width, device=device)
        groups[name] = ViewBatch(pixels, torch.zeros(*shape, 4), coins, coins)
    index = torch.arange(images)
    return Views(groups, index.to(device), index, torch.full((images, 2), 224))


def make_step(config: RunConfig, images: int, device: torch.device) -> Callable[[], None]:
    model = build_distillation(config, torch.bfloat16 if device.type == "cuda" else None).to(device)
    model.teacher.to(device)
    optimiser = build_optimiser(model, model.student.backbone.depth, config.optimiser)
    average = MovingAverage(model.teacher, model.student)
    views = random_views(config, images, device)

    def step() -> None:
        model(StepInput(views, PROGRESS, False))[0].backward()
        clip_gradients(list(model.parameters()), config.optimiser, PROGRESS)
        model.finish_step()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        average.update(0.996)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def peak_resident() -> float:
    """Largest resident set so far in MiB (Linux). Not `ru_maxrss`, which a child process starts with its parent's."""
    status = Path("/proc/self/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) / 2**10


def print_peak(variant: str, size: str, images: int, device: torch.device) -> None:
    """Print the peak of three steps in MiB (run in a process of its own)."""
    before = peak_resident()
    step = make_step(settings(variant, size), images, device)
    for _ in range(3):
        step()
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(peak_resident() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="*", default=["tiny", "small"])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variants", nargs="*", default=["dino", "selfpatch"], choices=VARIANTS)
    parser.add_argument("--memory-of", help="print one variant's peak memory only")
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.set_float32_matmul_precision("medium")
    if given.memory_of:
        print_peak(given.memory_of, given.size[0], given.images, device)
        return
    print(
        f"{device}, {torch.get_num_threads()} threads, {given.images} images, 2 views of 224 and 8 of 96 pixels"
    )
    for size in given.size:
        steps = {
            variant: make_step(settings(variant, size), given.images, device) for variant in given.variants
        }
        times: dict[str, list[float]] = {variant: [] for variant in steps}
        for repeat in range(given.repeats + 1):
            for variant, step in steps.items():
                start = time.perf_counter()
                step()
                if repeat:
                    times[variant].append(time.perf_counter() - start)
        steps.clear()
        asked = [
            sys.executable,
            __file__,
            "--size",
            size,
            "--images",
            str(given.images),
            "--device",
            given.device,
        ]
        first: tuple[list[float], float] | None = None
        for variant, taken in times.items():
            command = [*asked, "--memory-of", variant]
            peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            first = first or (taken, peak)
            ratio = statistics.median(a / b for a, b in zip(taken, first[0], strict=True))
            print(
                f"ViT {size:5}  {variant:25}  {1000 * statistics.median(taken):6.0f} ms ({ratio:.2f}x)  "
                f"{peak:6.0f} MiB ({peak / first[1]:.2f}x)",
                flush=True,
            )


if __name__ == "__main__":
    main()
