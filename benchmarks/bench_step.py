"""What a training step costs: `dino` against its bare networks, and other recipes against `dino`, alternating in one run.

    python -m benchmarks.bench_step [--size tiny small] [--batch 8] [--repeats 5] [--precision fp32 bf16]

Every figure is a ratio of medians of steps that take turns, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from glocal.models.teacher import MovingAverage
from glocal.recipes import configure
from glocal.schedules import Progress
from glocal.training.config import RunConfig
from glocal.training.network import SelfDistillation, StepInput, build_distillation
from glocal.training.optimiser import build_optimiser, clip_gradients
from glocal.views.augment import augment
from glocal.views.batch import ViewBatch, Views

PROGRESS = Progress(step=50_000, total_steps=100_000, steps_per_epoch=1000)


def configuration(recipe: str, size: str, batch: int, precision: str) -> RunConfig:
    """A recipe at ImageNet's scale: 2 views of 224 and 8 of 96 pixels, 65,536 prototypes."""
    preset = "imagenet"
    overrides = [f"backbone.size={size}", f"training.batch_size={batch}", f"speed.precision={precision}"]
    return configure(recipe, data="DATA", out="RUN", preset=preset, overrides=overrides)


def raw_views(config: RunConfig) -> Views:
    """Random bytes with boxes as the recipe draws them from a 256x256 source."""
    from glocal.views.boxes import GeometryLaw

    batch = config.training.batch_size
    law = GeometryLaw(config.views)
    seeds = torch.randint(2**62, (batch,))
    draws = law.draw(seeds.numpy())
    boxes = torch.from_numpy(law.place(draws, np.full((batch, 2), 256))).float()
    groups = {
        name: ViewBatch(
            torch.randint(0, 256, (batch, g.count, 3, *g.height_width), dtype=torch.uint8),
            boxes[:, law.slices[name]].contiguous(),
            torch.from_numpy(draws.flip[:, law.slices[name]].copy()),
            torch.from_numpy(draws.strong[:, law.slices[name]].copy()),
        )
        for name, g in config.views.items()
    }
    return Views(groups, seeds, torch.arange(batch), torch.full((batch, 2), 256)).to(device())


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Subject:
    """One recipe, ready to step."""

    def __init__(self, recipe: str, size: str, batch: int, precision: str) -> None:
        self.config = configuration(recipe, size, batch, precision)
        autocast = torch.bfloat16 if precision == "bf16" else None
        self.model: SelfDistillation = build_distillation(self.config, autocast).to(device())
        self.model.teacher.to(device())
        self.optimiser = build_optimiser(self.model, 12, self.config.optimiser)
        self.average = MovingAverage(self.model.teacher, self.model.student)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.views = raw_views(self.config)

    def step(self) -> None:
        """Augmentation, losses, gradients, update: everything of a step but loading."""
        views = augment(self.views, self.config.views, self.config.backbone.patch_size)
        loss, _ = self.model(StepInput(views, PROGRESS, False))
        loss.backward()
        self.update()

    def update(self) -> None:
        """Everything after the gradients."""
        clip_gradients(self.parameters, self.config.optimiser, PROGRESS)
        self.model.finish_step()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.average.update(0.996)

    def bare(self) -> None:
        """Teacher forward and student forward and backward at the same shapes; no heads, loss or update."""
        views = (
            augment(self.views, self.config.views, self.config.backbone.patch_size)
            if self._augmented is None
            else self._augmented
        )
        with torch.autocast(device().type, torch.bfloat16, enabled=self.model.autocast is not None):
            with torch.no_grad():
                self.model.teacher.features(views, self.config.views, "teacher")
            features = self.model.student.features(views, self.config.views, "student")
            total = sum(
                f.cls.float().square().sum() + f.patches.float().square().sum() * 1e-6
                for f in features.values()
            )
        total.backward()  # type: ignore[union-attr]
        self.optimiser.zero_grad(set_to_none=True)

    _augmented: Views | None = None

    def prepare(self) -> None:
        """Augment once, for `bare`."""
        self._augmented = augment(self.views, self.config.views, self.config.backbone.patch_size)


def alternate(functions: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each, taking turns, after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            synchronise()
            began = time.perf_counter()
            function()
            synchronise()
            if turn:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(t) for name, t in times.items()}


def synchronise() -> None:
    """Wait for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_of(recipe: str, size: str, batch: int, precision: str) -> float:
    """Peak memory in GiB of two steps in a process of its own, less that of the imports."""
    code = (
        "import torch; from benchmarks.bench_step import Subject; from glocal.training.stopwatch import peak_memory_gib;"
        "torch.set_float32_matmul_precision('medium'); before = peak_memory_gib();"
        f"s = Subject({recipe!r}, {size!r}, {batch}, {precision!r}); s.step(); s.step(); print(peak_memory_gib() - before)"
    )
    return float(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()[-1]
    )


def main() -> None:
    """Print one table a backbone size and precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", nargs="+", default=["tiny", "small"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", nargs="+", default=["fp32"])
    parser.add_argument("--recipes", nargs="+", default=["local-global", "pw-self"])
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("medium")
    print(
        f"torch {torch.__version__}, {device()}, {torch.get_num_threads()} threads, batch {arguments.batch}, medians of {arguments.repeats}"
    )
    for size in arguments.size:
        for precision in arguments.precision:
            one_table(size, precision, arguments.batch, arguments.repeats, arguments.recipes)


def one_table(size: str, precision: str, batch: int, repeats: int, recipes: list[str]) -> None:
    """Time and memory of all recipes against dino."""
    dino = Subject("dino", size, batch, precision)
    dino.prepare()
    seconds = alternate({"bare": dino.bare, "dino": dino.step}, repeats)
    loss, _ = dino.model(StepInput(augment(dino.views, dino.config.views, 16), PROGRESS, False))
    loss.backward()

    def optimiser_and_average() -> None:
        dino.optimiser.step()
        dino.average.update(0.996)

    update = alternate({"optimiser and average": optimiser_and_average}, repeats)
    print(
        f"\nViT-{size} {precision}: dino step {seconds['dino']:.3f} s = {seconds['dino'] / seconds['bare']:.3f} x bare networks (bar 1.15)"
    )
    print(f"  optimiser and average {update['optimiser and average'] / seconds['dino']:.1%} of it (bar 5 %)")
    base = peak_of("dino", size, batch, precision)
    for recipe in recipes:
        other = Subject(recipe, size, batch, precision)
        pair = alternate({"dino": dino.step, recipe: other.step}, repeats)
        memory = peak_of(recipe, size, batch, precision)
        print(
            f"  {recipe}: time {pair[recipe] / pair['dino']:.3f} x dino, memory {memory / base:.3f} x dino "
            f"({memory:.2f} of {base:.2f} GiB; bar 1.25 each)"
        )
        del other
        gc.collect()


if __name__ == "__main__":
    main()
